"""Gather, scatter, sort."""

from __future__ import annotations

import torch

from bnpass.importer.functions import indexing as functions
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg


@register_op("Gather")
def gather(op: ImportedNode) -> Arg:
    """One constant index selects; else rows are gathered (a table of embeddings is a weight)."""
    axis, index = op.attr("axis", 0), op.const(1)
    data = op.weight(0)
    if index is not None and index.dim() == 0:
        return op.call(torch.select, data, axis, int(index))
    return op.call(functions.gather, data, op.tensor(1), axis)


@register_op("GatherElements")
def gather_elements(op: ImportedNode) -> Arg:
    """Index by index along one axis."""
    return op.call(functions.gather_elements, op.tensor(0), op.tensor(1), op.attr("axis", 0))


@register_op("GatherND")
def gather_nd(op: ImportedNode) -> Arg:
    """Coordinates in the last axis of the indices."""
    return op.call(functions.gather_nd, op.tensor(0), op.tensor(1), op.attr("batch_dims", 0))


@register_op("Scatter")
@register_op("ScatterElements")
def scatter_elements(op: ImportedNode) -> Arg:
    """Index by index along one axis."""
    args = (op.attr("axis", 0), op.attr("reduction", "none"))
    return op.call(functions.scatter_elements, op.tensor(0), op.tensor(1), op.tensor(2), *args)


@register_op("ScatterND")
def scatter_nd(op: ImportedNode) -> Arg:
    """Coordinates in the last axis of the indices."""
    args = (op.tensor(0), op.tensor(1), op.tensor(2), op.attr("reduction", "none"))
    return op.call(functions.scatter_nd, *args)


@register_op("TopK")
def top_k(op: ImportedNode) -> Arg:
    """Values and indices; k as attribute before opset 10."""
    k = (op.attr("k"),) if op.opset < 10 else op.ints(1)
    largest = bool(op.attr("largest", 1))
    pair = op.call(functions.top_k, op.tensor(0), k, op.attr("axis", -1), largest)
    return op.items(pair, 2)


@register_op("OneHot")
def one_hot(op: ImportedNode) -> Arg:
    """Depth, then (off, on)."""
    return op.call(
        functions.one_hot, op.tensor(0), op.ints(1), op.buffer(2), op.attr("axis", -1)
    )


@register_op("NonZero")
def nonzero(op: ImportedNode) -> Arg:
    """Coordinates, one row an axis."""
    return op.call(functions.nonzero, op.tensor(0))


@register_op("Compress")
def compress(op: ImportedNode) -> Arg:
    """The entries whose condition is true."""
    return op.call(functions.compress, op.tensor(0), op.tensor(1), op.attr("axis"))


@register_op("ReverseSequence")
def reverse_sequence(op: ImportedNode) -> Arg:
    """Sample by sample, up to its length."""
    axes = (op.attr("time_axis", 0), op.attr("batch_axis", 1))
    return op.call(functions.reverse_sequence, op.tensor(0), op.tensor(1), *axes)
