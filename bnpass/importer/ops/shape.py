"""Operators that move elements without changing them, and shape arithmetic."""

from __future__ import annotations

import torch

from bnpass.importer.functions import padding
from bnpass.importer.functions import shape as functions
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg, Const, torch_dtype


@register_op("Identity")
def identity(op: ImportedNode) -> Arg:
    """An alias; of a weight, a weight of its own.

    torch's older exporter writes Identity for every tensor that happens to EQUAL another: these are
    different weights, and tying them would train them as one.
    """
    value = op.inputs[0]
    if isinstance(value, Const) and value.name and value.dtype.is_floating_point:
        return Const(op.node.output[0], tensor=value.copy())
    return value


@register_op("Reshape")
def reshape(op: ImportedNode) -> Arg:
    """0 copies the size of the input unless allowzero; -1 is what remains."""
    shape, allow = op.ints(1), bool(op.attr("allowzero", 0))
    x = op.tensor(0)
    plain = isinstance(shape, tuple) and all(isinstance(n, int) and n for n in shape)
    if plain or (allow and isinstance(shape, tuple)):
        return op.call(torch.reshape, x, shape)
    return op.call(functions.reshape, x, shape, allow)


@register_op("Flatten")
def flatten(op: ImportedNode) -> Arg:
    """To rank 2, split in front of ``axis``."""
    return op.call(functions.flatten, op.tensor(0), op.attr("axis", 1))


@register_op("Transpose")
def transpose(op: ImportedNode) -> Arg:
    """All axes reversed where perm is left out."""
    perm = op.attr("perm")
    if perm is None:
        return op.call(functions.reverse_axes, op.tensor(0))
    return op.call(torch.permute, op.tensor(0), perm)


@register_op("Squeeze")
def squeeze(op: ImportedNode) -> Arg:
    """Axes as attribute, since opset 13 as input; none: every axis of size 1."""
    axes = op.attr("axes") if op.opset < 13 else op.ints(1)
    if axes is None:
        return op.call(torch.squeeze, op.tensor(0))
    return op.call(functions.squeeze, op.tensor(0), axes)


@register_op("Unsqueeze")
def unsqueeze(op: ImportedNode) -> Arg:
    """Axes count in the result."""
    axes = op.attr("axes") if op.opset < 13 else op.ints(1)
    if isinstance(axes, tuple) and len(axes) == 1:
        return op.call(torch.unsqueeze, op.tensor(0), axes[0])
    return op.call(functions.unsqueeze, op.tensor(0), axes)


@register_op("Expand")
def expand(op: ImportedNode) -> Arg:
    """Both ways: the result's shape is the broadcast of the two."""
    return op.call(functions.expand, op.tensor(0), op.ints(1))


@register_op("Tile")
def tile(op: ImportedNode) -> Arg:
    """One count an axis."""
    return op.call(functions.tile, op.tensor(0), op.ints(1))


@register_op("Concat")
def concat(op: ImportedNode) -> Arg:
    """Along one axis."""
    return op.call(torch.cat, op.tensors(), dim=op.attr("axis", 1))


@register_op("Split")
def split(op: ImportedNode) -> Arg:
    """Sizes as attribute, since opset 13 as input; else equal parts (the last may be smaller)."""
    axis, count = op.attr("axis", 0), len(op.node.output)
    sizes = op.attr("split") if op.opset < 13 else op.ints(1)
    x = op.tensor(0)
    if sizes is None:
        parts = op.call(functions.split_evenly, x, op.attr("num_outputs", count), axis)
    elif isinstance(sizes, tuple):
        parts = op.call(torch.split, x, list(sizes), dim=axis)
    else:
        parts = op.call(functions.split, x, sizes, axis)
    return op.items(parts, count)


@register_op("Slice")
def slice_(op: ImportedNode) -> Arg:
    """Starts, ends, axes as attributes, since opset 10 as inputs; ends are clamped."""
    if op.opset < 10:
        args = (op.attr("starts"), op.attr("ends"), op.attr("axes"), None)
    else:
        args = (op.ints(1), op.ints(2), op.ints(3), op.ints(4))
    return op.call(functions.slice_axes, op.tensor(0), *args)


@register_op("DepthToSpace")
def depth_to_space(op: ImportedNode) -> Arg:
    """DCR: channel = block * C + c; CRD (torch.pixel_shuffle): channel = c * block^2 + block."""
    size = op.attr("blocksize")
    if op.attr("mode", "DCR") == "CRD":
        return op.call(torch.nn.functional.pixel_shuffle, op.tensor(0), size)
    return op.call(functions.depth_to_space, op.tensor(0), size)


@register_op("SpaceToDepth")
def space_to_depth(op: ImportedNode) -> Arg:
    """Channel = block * C + c (DCR); mode CRD since opset 27 is torch.pixel_unshuffle."""
    size = op.attr("blocksize")
    if op.attr("mode", "DCR") == "CRD":
        return op.call(torch.nn.functional.pixel_unshuffle, op.tensor(0), size)
    return op.call(functions.space_to_depth, op.tensor(0), size)


@register_op("Pad", until=10)
def pad_attributes(op: ImportedNode) -> Arg:
    """Pads and value as attributes."""
    args = (op.attr("pads"), op.attr("mode", "constant"), op.attr("value", 0.0))
    return op.call(padding.pad, op.tensor(0), *args)


@register_op("Pad", since=11)
def pad(op: ImportedNode) -> Arg:
    """Pads, value and (since 18) axes as inputs."""
    mode = op.attr("mode", "constant")
    return op.call(padding.pad, op.tensor(0), op.ints(1), mode, op.number(2), op.ints(3))


@register_op("Shape")
def shape(op: ImportedNode) -> Arg:
    """int64, on the CPU."""
    return op.call(functions.shape, _shape_source(op), op.attr("start", 0), op.attr("end"))


@register_op("Size")
def size(op: ImportedNode) -> Arg:
    """int64, on the CPU."""
    return op.call(functions.size, _shape_source(op))


def _shape_source(op: ImportedNode) -> Arg:
    return op.tensor(0)


@register_op("ConstantOfShape")
def constant_of_shape(op: ImportedNode) -> Arg:
    """Of float 0 unless value says otherwise."""
    value = op.attr("value")
    if value is None:
        return op.call(functions.full, op.ints(0), 0.0, torch.float32)
    dtype = torch_dtype(value.data_type)
    if dtype is None:
        op.fail("a value type that torch does not have")
    return op.call(functions.full, op.ints(0), Const(proto=value).tensor.reshape(()).item(), dtype)


@register_op("Range")
def range_(op: ImportedNode) -> Arg:
    """start, limit, delta."""
    dtype = op.dtype(0)
    if dtype is None:
        op.fail("unknown element type")
    args = [op.number(i) for i in range(3)]
    return op.call(functions.arange, *args, dtype)


@register_op("EyeLike")
def eye_like(op: ImportedNode) -> Arg:
    """Ones on the k-th diagonal, in the input's shape."""
    dtype = torch_dtype(op.attr("dtype", 0))
    return op.call(functions.eye_like, op.tensor(0), op.attr("k", 0), dtype)


@register_op("Trilu")
def trilu(op: ImportedNode) -> Arg:
    """The upper or lower triangle of the last two axes."""
    return op.call(functions.trilu, op.tensor(0), op.number(1, 0), bool(op.attr("upper", 1)))
