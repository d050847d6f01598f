"""Reductions, arg-reductions and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bnpass.importer.functions import reduce as functions
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg

_PLAIN: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
}


def reduction(op: ImportedNode) -> Arg:
    """Axes as attribute or input, whichever the file has."""
    axes = op.attr("axes") if "axes" in op.attrs else op.ints(1)
    keep, noop = bool(op.attr("keepdims", 1)), bool(op.attr("noop_with_empty_axes", 0))
    plain = _PLAIN.get(op.node.op_type)
    if plain is not None and op.is_float() and isinstance(axes, tuple) and axes:
        return op.call(plain, op.tensor(0), axes, keepdim=keep)
    return op.call(functions.reduce, op.tensor(0), op.node.op_type, axes, keep, noop)


for _name in (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
):  # fmt: skip
    register_op(_name)(reduction)


@register_op("ArgMax")
@register_op("ArgMin")
def arg_extreme(op: ImportedNode) -> Arg:
    """The first of equal values unless select_last_index."""
    kind = op.node.op_type.lower()
    last = bool(op.attr("select_last_index", 0))
    axis, keep = op.attr("axis", 0), bool(op.attr("keepdims", 1))
    return op.call(functions.arg_extreme, op.tensor(0), kind, axis, keep, last)


@register_op("CumSum")
@register_op("CumProd")
def cumulate(op: ImportedNode) -> Arg:
    """Along one axis; exclusive leaves the entry itself out."""
    flags = (bool(op.attr("exclusive", 0)), bool(op.attr("reverse", 0)))
    return op.call(functions.cumulate, op.tensor(0), op.node.op_type, op.number(1), *flags)
