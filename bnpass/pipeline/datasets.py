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

    from bnpass.data import Data, InputSpec, NamedData, Stream

log = logging.getLogger("bnpass.pipeline")


def input_spec(model: onnx.ModelProto) -> InputSpec:
    """What the model's first input takes; see :func:`input_specs`.

    Raises:
        InputError: the model has no input, or the shape of its first is unknown.
    """
    return next(iter(input_specs(model).values()))


def input_specs(model: onnx.ModelProto) -> dict[str, InputSpec]:
    """What each input of the model takes, by its name.

    Raises:
        InputError: the model has no input, or the shape of one is unknown.
    """
    from bnpass.data import InputSpec
    from bnpass.onnx_model.signature import dtype_of, inputs_of

    ports = inputs_of(model)
    unknown = next((port.name for port in ports if port.shape is None), "")
    if not ports or unknown:
        raise InputError(f"the shape of input {unknown!r} is unknown" if unknown
                         else "the model has no input", "export it with the shapes of its inputs")
    return {port.name: InputSpec(port.shape or (), dtype_of(port.kind).name) for port in ports}


def open_for(
    model: str | os.PathLike[str] | onnx.ModelProto, spec: str, *, split: str = "train", **opts: Any
) -> Data | NamedData | Stream:
    """Open a data set for a model's inputs.

    A conversion that is recorded in the model (it was trained with it) is replayed where it fits
    and no option says otherwise; else it is inferred.

    Args:
        model: the model.
        spec: the data, see :func:`bnpass.data.open_data`.
        split: which split, where the source holds several; its only one where it holds one.
        **opts: of :func:`bnpass.data.open_data`.
    """
    from bnpass.data import open_inputs, splits

    held = splits(spec)
    if held and split not in held:
        split = held[0]
    proto = load_model(model, data=False)
    data = _replayed(proto, spec, {**opts, "split": split})
    if data is None:
        return open_inputs(spec, input_specs(proto), split=split, **opts)
    log.info("data: %s (as recorded in the model)", data.converter.describe())
    return data


def _replayed(model: onnx.ModelProto, spec: str, opts: dict[str, Any]) -> Data | None:
    from bnpass.data import open_data

    kept = recorded(model)
    overridden = any(opts.get(name) not in (None, "auto") for name in
                     ("layout", "scale", "mean", "std", "resize", "fit", "mask"))
    if kept is None or overridden:
        return None
    try:
        known = json.loads(kept)
        return None if set(known) <= {"inputs", "format"} else open_data(spec, recipe=known, **opts)
    except (InputError, ValueError):
        return None  # stored in another way: infer afresh, which also says what is wrong
