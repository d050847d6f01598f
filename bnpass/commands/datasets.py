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
    group.add_argument("--resize", type=_size, metavar="HxW",
                       help="size of decoded images (default: what the model takes)")
    group.add_argument("--fit", choices=("crop", "stretch"),
                       help="how they are brought to it (default crop: the middle)")
    group.add_argument("--workers", type=options.at_least_one, metavar="N",
                       help="threads that decode images (default 2)")


def add_mask_option(parser: argparse.ArgumentParser) -> None:
    """``--mask``."""
    parser.add_argument(
        "--mask", default="", metavar="NAME",
        help="array of the data, a row a sample, not 0 at the positions that count in BN's "
        "statistics (padding does not); it is no target, and an input if it is called like one")


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them: ``0.485,0.456,0.406``."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers with commas between") from None


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(options.at_least_one(height)), int(options.at_least_one(width or height))


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_data_options` as keywords of :func:`bnpass.data.open_data`."""
    given = {name: getattr(args, name) for name in ("resize", "fit", "workers")}
    if getattr(args, "mask", ""):
        given["mask"] = args.mask
    return {**{name: getattr(args, name) for name in ("layout", "scale", "mean", "std")},
            **{name: value for name, value in given.items() if value is not None}}
