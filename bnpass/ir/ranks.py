"""The number of dimensions of a value, where that is cheaper to find than its shape."""

from __future__ import annotations

from bnpass.ir.graph import Graph
from bnpass.ir.operators import operator


def rank_of(graph: Graph, value: str) -> int | None:
    """The number of dimensions of a value, or None when it is unknown.

    Cheaper than its shape: a convolution's rank is that of its weight.
    """
    op = graph.producer(value)
    while op is not None and operator(op.kind).keeps_rank:
        value = op.inputs[0]
        op = graph.producer(value)
    if op is not None and operator(op.kind).convolution:
        weight = graph.constants.get(op.inputs[1])
        if weight is not None:
            return len(weight.shape)
    shape = graph.shape(value)
    return None if shape is None else len(shape)
