"""Resize and Upsample."""

from __future__ import annotations

from typing import Any

from bnpass.importer.functions import resize as functions
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg

_COORDINATES = frozenset(
    {
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
        "tf_half_pixel_for_nn", "tf_crop_and_resize",
    }
)  # fmt: skip


def _floats(op: ImportedNode, index: int) -> Any:
    """A vector of floats; None if it is left out or empty, as older opsets write it."""
    if not op.has(index):
        return None
    value = op.const(index)
    return op.buffer(index) if value is None else tuple(value.tolist()) or None


def _sizes(op: ImportedNode, index: int) -> Any:
    sizes = op.ints(index)
    return None if sizes == () else sizes


@register_op("Resize", since=11)
def resize(op: ImportedNode) -> Arg:
    """Inputs X, roi, scales, sizes."""
    mode, coordinates = op.attr("mode", "nearest"), op.attr("coordinate_transformation_mode")
    coordinates = coordinates or "half_pixel"
    if coordinates not in _COORDINATES:
        op.fail(f"coordinate_transformation_mode {coordinates!r}")
    scales, sizes = _floats(op, 2), _sizes(op, 3)
    if scales is None and sizes is None:
        op.fail("neither scales nor sizes")
    settings = (
        mode, coordinates, op.attr("nearest_mode", "round_prefer_floor"),
        op.attr("cubic_coeff_a", -0.75), bool(op.attr("exclude_outside", 0)),
        op.attr("extrapolation_value", 0.0), bool(op.attr("antialias", 0)),
    )  # fmt: skip
    policy = op.attr("keep_aspect_ratio_policy", "stretch")
    return op.call(
        functions.resize, op.tensor(0), _floats(op, 1), None if sizes is not None else scales,
        sizes, op.attr("axes"), policy, settings,
    )  # fmt: skip


@register_op("Resize", until=10)
@register_op("Upsample")
def upsample(op: ImportedNode) -> Arg:
    """The older form: asymmetric coordinates; nearest rounds down, and up where an axis shrinks."""
    mode = {"bilinear": "linear"}.get(op.attr("mode", "nearest"), op.attr("mode", "nearest"))
    scales = op.attr("scales") if op.opset < 9 else _floats(op, 1)
    settings = (mode, "asymmetric", "older", -0.75, False, 0.0, False)
    return op.call(
        functions.resize, op.tensor(0), None, scales, None, None, "stretch", settings
    )
