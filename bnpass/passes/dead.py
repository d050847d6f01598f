"""Operators that nothing needs any more once others have taken the place of their values."""

from __future__ import annotations

from collections.abc import Iterable

from bnpass.ir.edits import AddedOperator
from bnpass.ir.graph import Graph, Op


def dead_operators(graph: Graph, added: Iterable[AddedOperator]) -> list[Op]:
    """The operators that only made values which added ones replace, last ones first."""
    added = list(added)
    replaced = {name for one in added for name in one.op.outputs}
    needed = {name for one in added for name in one.op.inputs} - replaced
    dead: dict[str, Op] = {}
    makers = (graph.producer(name) for name in replaced)
    stack = [op for op in makers if op is not None]
    while stack:
        op = stack.pop()
        if op.name in dead or not all(
            name in replaced or _unread(name, needed, dead, graph) for name in op.outputs if name
        ):
            continue
        dead[op.name] = op
        makers = (graph.producer(name) for name in (*op.inputs, *op.captured))
        stack += [maker for maker in makers if maker is not None]
    return sorted(dead.values(), key=lambda op: -graph.order[op.name])


def _unread(value: str, needed: set[str], dead: dict[str, Op], graph: Graph) -> bool:
    if value in needed or graph.is_output(value):
        return False
    return all(use.op.name in dead for use in graph.uses(value))
