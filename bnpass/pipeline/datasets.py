"""Data sets for a model given as a file, and the record of how its samples are converted."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

from bnpass.errors import InputError
from bnpass.files import load_model

if TYPE_CHECKING:
    import onnx

    from bnpass.data import Data, InputSpec
    from bnpass.data.recipe import Recipe

log = logging.getLogger("bnpass.pipeline")

RECIPE = "bnpass.data"
"""Key of the model's metadata under which the conversion of its training data is recorded."""

STATISTICS = "bnpass.statistics"
"""Key for how its BatchNorms' statistics were made; training leaves ``"ema"`` behind."""


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

    recorded = _recorded(model)
    overridden = any(opts.get(name) not in (None, "auto") for name in
                     ("layout", "scale", "mean", "std", "resize", "fit"))
    if recorded is None or overridden:
        return None
    try:
        return open_data(spec, recipe=json.loads(recorded), **opts)
    except (InputError, ValueError):
        return None  # stored in another way: infer afresh, which also says what is wrong


def _recorded(model: onnx.ModelProto, key: str = RECIPE) -> str | None:
    return next((p.value for p in model.metadata_props if p.key == key), None)


def statistics_of(model: onnx.ModelProto) -> str | None:
    """How the statistics of a model's BatchNorms were made, as recorded in it, or None."""
    return _recorded(model, STATISTICS)


def record_statistics(model: onnx.ModelProto, method: str) -> onnx.ModelProto:
    """Record in a model's metadata how its BatchNorms' statistics were made; return the model."""
    return _record(model, STATISTICS, method)


def recorded_recipe(model: onnx.ModelProto) -> Recipe | None:
    """The conversion that is recorded in a model's metadata, or None.

    Raises:
        InputError: what is recorded there is none.
    """
    from bnpass.data.recipe import Recipe

    recorded = _recorded(model)
    if recorded is None:
        return None
    try:
        return Recipe.from_dict(json.loads(recorded))
    except (ValueError, AttributeError) as error:
        raise InputError(f"the metadata {RECIPE!r} is no recorded data conversion: {error}",
                         "it is what bnpass train writes; remove it") from error


def record_recipe(model: onnx.ModelProto, recipe: dict[str, Any]) -> onnx.ModelProto:
    """Record in a model's metadata how samples become its input; return the model."""
    return _record(model, RECIPE, json.dumps(recipe, sort_keys=True))


def _record(model: onnx.ModelProto, key: str, value: str) -> onnx.ModelProto:
    from onnx import helper

    kept = {p.key: p.value for p in model.metadata_props if p.key != key}
    helper.set_model_props(model, {**kept, key: value})
    return model
