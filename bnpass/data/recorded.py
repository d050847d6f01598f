"""What training leaves in a model's metadata: how samples become its input, and its statistics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bnpass.data.recipe import Recipe
from bnpass.errors import InputError

if TYPE_CHECKING:
    import onnx

RECIPE = "bnpass.data"
"""Key of the model's metadata under which the conversion of its training data is recorded."""

STATISTICS = "bnpass.statistics"
"""Key for how its BatchNorms' statistics were made; training leaves ``"ema"`` behind."""


def recorded(model: onnx.ModelProto, key: str = RECIPE) -> str | None:
    """What stands in a model's metadata under a key."""
    return next((p.value for p in model.metadata_props if p.key == key), None)


def statistics_of(model: onnx.ModelProto) -> str | None:
    """How the statistics of a model's BatchNorms were made, as recorded in it, or None."""
    return recorded(model, STATISTICS)


def record_statistics(model: onnx.ModelProto, method: str) -> onnx.ModelProto:
    """Record in a model's metadata how its BatchNorms' statistics were made; return the model."""
    return _record(model, STATISTICS, method)


def recorded_recipe(model: onnx.ModelProto) -> Recipe | None:
    """The conversion that is recorded in a model's metadata, or None.

    Raises:
        InputError: what is recorded there is none.
    """
    kept = recorded(model)
    if kept is None:
        return None
    try:
        known = json.loads(kept)
        # Several inputs by name, and batches of people's own, have no one conversion.
        return None if set(known) <= {"inputs", "format"} else Recipe.from_dict(known)
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
