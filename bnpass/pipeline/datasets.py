"""Data sets for a model given as a file."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

from bnpass.data.recorded import recorded
from bnpass.errors import InputError
from bnpass.files import load_model

if TYPE_CHECKING:
    import onnx

    from bnpass.data import Data, InputSpec

log = logging.getLogger("bnpass.pipeline")


def input_spec(model: onnx.ModelProto) -> InputSpec:
    """What the model's first input takes.

    Raises:
        InputError: the model has no input, or the shape of its first is unknown.
    """
    from bnpass.data import InputSpec
    from bnpass.onnx_model.signature import dtype_of, inputs_of

    ports = inputs_of(model)
    if not ports or ports[0].shape is None:
        raise InputError("the model's first input is missing or has no shape",
                         "export it with the shapes of its inputs")
    return InputSpec(ports[0].shape, dtype_of(ports[0].kind).name)


def open_for(
    model: str | os.PathLike[str] | onnx.ModelProto, spec: str, *, split: str = "train", **opts: Any
) -> Data:
    """Open a data set for a model's first input.

    A conversion that is recorded in the model (it was trained with it) is replayed where it fits
    and no option says otherwise; else it is inferred.

    Args:
        model: the model.
        spec: the data, see :func:`bnpass.data.open_data`.
        split: which split, where the source holds several; its only one where it holds one.
        **opts: of :func:`bnpass.data.open_data`.
    """
    from bnpass.data import open_data, splits

    held = splits(spec)
    if held and split not in held:
        split = held[0]
    proto = load_model(model, data=False)
    data = _replayed(proto, spec, {**opts, "split": split})
    if data is None:
        return open_data(spec, inputs=input_spec(proto), split=split, **opts)
    log.info("data: %s (as recorded in the model)", data.converter.describe())
    return data


def _replayed(model: onnx.ModelProto, spec: str, opts: dict[str, Any]) -> Data | None:
    from bnpass.data import open_data

    kept = recorded(model)
    overridden = any(opts.get(name) not in (None, "auto") for name in
                     ("layout", "scale", "mean", "std", "resize", "fit"))
    if kept is None or overridden:
        return None
    try:
        return open_data(spec, recipe=json.loads(kept), **opts)
    except (InputError, ValueError):
        return None  # stored in another way: infer afresh, which also says what is wrong
