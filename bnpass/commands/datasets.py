"""Data sets for a model that is given as a file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    import os

    import onnx

    from bnpass.data import Data, InputSpec


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
    group.add_argument("--scale", type=options.positive,
                       help="factor for every element (default 1/255 for bytes, else 1)")
    group.add_argument("--mean", type=_numbers, metavar="M[,M..]",
                       help="subtracted after scaling, one number or one a channel")
    group.add_argument("--std", type=options.positive_list, metavar="S[,S..]",
                       help="divisor after that")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers with commas between") from None


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_data_options` as keywords of :func:`bnpass.data.open_data`."""
    return {name: getattr(args, name) for name in ("layout", "scale", "mean", "std")}


def input_spec(model: onnx.ModelProto) -> InputSpec:
    """What the model's first input takes.

    Raises:
        InputError: the model has no input, or its rank is unknown.
    """
    from bnpass.data import InputSpec
    from bnpass.errors import InputError
    from bnpass.runtime.signature import dtype_of, inputs_of

    ports = inputs_of(model)
    if not ports or ports[0].shape is None:
        raise InputError("the model's first input is missing or has no shape",
                         "export it with the shapes of its inputs")
    return InputSpec(ports[0].shape, dtype_of(ports[0].kind).name)


RECIPE = "bnpass.data"
"""Key of the model's metadata under which the conversion of its training data is recorded."""


def open_for(
    model: str | os.PathLike[str] | onnx.ModelProto, spec: str, ui: Ui, **opts: Any
) -> Data:
    """Open a data set for a model's first input.

    A conversion that is recorded in the model (it was trained with it) is replayed where it fits
    and no option says otherwise; else it is inferred. Either way it is logged and put into the
    JSON document.
    """
    from bnpass.data import open_data, splits
    from bnpass.files import load_model

    held = splits(spec)
    if held and opts.get("split", "train") not in held:
        opts["split"] = held[0]
    proto = load_model(model, data=False)
    data = _replayed(proto, spec, opts)
    if data is None:
        data = open_data(spec, inputs=input_spec(proto), **opts)
    else:
        ui.log(f"data: {data.converter.describe()} (as recorded in the model)")
    ui.document.setdefault("data", {})[opts.get("split", "train")] = data.recipe
    return data


def _replayed(model: onnx.ModelProto, spec: str, opts: dict[str, Any]) -> Data | None:
    import json

    from bnpass.data import open_data
    from bnpass.errors import InputError

    recorded = next((p.value for p in model.metadata_props if p.key == RECIPE), None)
    overridden = any(opts.get(name) not in (None, "auto") for name in
                     ("layout", "scale", "mean", "std"))
    if recorded is None or overridden:
        return None
    try:
        return open_data(spec, recipe=json.loads(recorded), **opts)
    except (InputError, ValueError):
        return None  # stored in another way: infer afresh, which also says what is wrong


def record_recipe(model: onnx.ModelProto, recipe: dict[str, Any]) -> None:
    """Record in a model's metadata how samples become its input."""
    import json

    from onnx import helper

    kept = {p.key: p.value for p in model.metadata_props if p.key != RECIPE}
    helper.set_model_props(model, {**kept, RECIPE: json.dumps(recipe, sort_keys=True)})
