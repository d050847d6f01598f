"""Residual branches: which BatchNorms end one, so that it can start as nothing (gamma 0).

Source: Goyal et al. 2017 (arXiv:1706.02677), section 5.1: with gamma 0 in the last BatchNorm of a
residual block the block starts as its skip.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from bnpass.ir.graph import Graph, Op


def residual_ends(
    graph: Graph,
    normalised: Set[str],
    is_layer: Callable[[Op], bool],
    is_sum: Callable[[Op], bool],
    crosses: Callable[[Op], bool],
) -> frozenset[str]:
    """Values whose BatchNorm is the last one of the residual branch of a sum.

    The residual branch is the operand with more layers in front of it than every other one.

    Args:
        graph: the view.
        normalised: values that get a BatchNorm.
        is_layer: whether an operator is a layer with weights.
        is_sum: whether an operator adds several computed values.
        crosses: whether an operator may lie between the BatchNorm and the sum.
    """
    depths = _depths(graph, is_layer)
    found = set()
    for op in filter(is_sum, graph.ops_in_order):
        operands = sorted(dict.fromkeys(op.inputs), key=lambda v: depths.get(v, 0))
        if depths.get(operands[-1], 0) > depths.get(operands[-2], 0):
            value = _normalised_in_front(operands[-1], graph, normalised, crosses)
            found.update([value] if value else [])
    return frozenset(found)


def _depths(graph: Graph, is_layer: Callable[[Op], bool]) -> dict[str, int]:
    """How many layers the longest way to a value goes through."""
    depths: dict[str, int] = {}
    for op in graph.ops_in_order:
        depth = max((depths.get(v, 0) for v in op.inputs), default=0) + is_layer(op)
        depths.update(dict.fromkeys(op.outputs, depth))
    return depths


def _normalised_in_front(
    value: str, graph: Graph, normalised: Set[str], crosses: Callable[[Op], bool]
) -> str:
    while value not in normalised:
        op = graph.producer(value)
        computed = [v for v in op.inputs if v and graph.constant(v) is None] if op else []
        if op is None or not crosses(op) or len(computed) != 1:
            return ""
        value = computed[0]
    return value
