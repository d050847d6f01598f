"""Options that say how a data set is read."""

from __future__ import annotations

import argparse
from typing import Any

from bnpass.commands import options


def add_data_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--data`` and how it is read."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", required=required, metavar="DATA",
        help=".npz with x and y; a folder of IDX files; images.npy,labels.npy; a folder of images "
        "per class; package.module:callable",
    )
    group.add_argument("--layout", choices=("auto", "nhwc", "nchw"), default="auto",
                       help="how images are stored (default: by their shape)")
    group.add_argument("--scale", type=options.ratio, metavar="S",
                       help="factor for every element (default 1/255 for bytes, else 1)")
    group.add_argument("--mean", type=numbers, metavar="M[,M..]",
                       help="subtracted after scaling, one number or one a channel")
    group.add_argument("--std", type=options.positive_list, metavar="S[,S..]",
                       help="divisor after that")


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them: ``0.485,0.456,0.406``."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers with commas between") from None


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_data_options` as keywords of :func:`bnpass.data.open_data`."""
    return {name: getattr(args, name) for name in ("layout", "scale", "mean", "std")}
