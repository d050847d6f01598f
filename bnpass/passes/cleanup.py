"""What a fold leaves behind: an Add to keep behind a MatMul, reshapings that undo each other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.correspondence import Relations
from bnpass.ir.edits import GraphEdits, Rewrite
from bnpass.ir.graph import Graph, Op
from bnpass.ir.operators import operator
from bnpass.ir.ranks import rank_of


def keep_adds(
    edits: GraphEdits, graph: Graph, relations: Relations, avoid: Collection[str] = ()
) -> GraphEdits:
    """A shift behind a MatMul enters the Add that stood there, instead of a new one.

    Not one of ``avoid``, whose constant would overflow.
    """
    removed = {op.name: data for op, data in edits.removed}
    rewrites = {r.op.name: r for r in edits.rewrites}
    for rewrite in edits.rewrites:
        if not operator(rewrite.op.kind).bare_product:
            continue
        if (
            rewrite.output_map is None
            or not rewrite.output_map.has_shift
            or rewrite.input_map is not None
        ):
            continue
        add = _removed_add(rewrite.op, removed, graph)
        if add is not None and add.name not in avoid:
            data = removed.pop(add.name)
            for value in _values_up_to(rewrite.op, add.inputs[data], removed, graph):
                relations.move(value, later=rewrite.output_map.shift_only())
            rewrites[rewrite.op.name] = Rewrite(
                rewrite.op, None, rewrite.output_map.scale_only(), sources=rewrite.sources
            )
            new = Map(np.zeros_like(rewrite.output_map.shift), rewrite.output_map.shift)
            rewrites[add.name] = Rewrite(add, constants={1 - data: new}, sources=rewrite.sources)
    kept = tuple((op, data) for op, data in edits.removed if op.name in removed)
    return GraphEdits(tuple(rewrites.values()), kept, edits.leftovers)


def _removed_add(op: Op, removed: dict[str, int], graph: Graph) -> Op | None:
    """The first removed Add of a constant that follows, only removed operators between."""
    value = op.outputs[0]
    while True:
        uses = graph.uses(value)
        if len(uses) != 1 or uses[0].op.name not in removed or graph.is_output(value):
            return None
        follower = uses[0].op
        if follower.kind == "Add":
            return follower
        value = follower.outputs[0]


def _values_up_to(op: Op, last: str, removed: dict[str, int], graph: Graph) -> list[str]:
    """An operator's output and the outputs of the removed ones behind it, up to the last."""
    values = [last]
    while values[-1] != op.outputs[0]:
        maker = graph.producer(values[-1])
        assert maker is not None
        values.append(maker.inputs[removed[maker.name]])
    return values


def drop_inverse_pairs(edits: GraphEdits, graph: Graph, relations: Relations) -> GraphEdits:
    """Two Transposes, or two reshapings, that undo each other once what stood between is gone.

    Then those around them, and so on.
    """
    removed = {op.name: data for op, data in edits.removed}
    kept = {left.ops[-1].name for left in edits.leftovers}
    pairs: list[tuple[Op, int]] = []
    gone = list(edits.removed)
    for op, data in gone:  # grows on the way
        first = graph.producer(op.inputs[data])
        if first is None or first.name in removed or op.name in kept:
            continue
        if not operator(first.kind).moves:
            continue
        second = _next_kept(first, removed, kept, graph)
        if second is not None and second.name not in removed and _inverse(first, second, graph):
            relations.gone.update(_values_up_to(first, second.inputs[0], removed, graph))
            removed[first.name] = removed[second.name] = 0
            pairs += [(first, 0), (second, 0)]
            gone.append((first, 0))
    if not pairs:
        return edits
    return replace(edits, removed=(*edits.removed, *pairs))


def _next_kept(op: Op, removed: dict[str, int], kept: set[str], graph: Graph) -> Op | None:
    """The operator behind the removed ones that follow, each the only reader of the one before."""
    while True:
        uses = graph.uses(op.outputs[0])
        if len(uses) != 1 or uses[0].index < 0 or graph.is_output(op.outputs[0]):
            return None
        op = uses[0].op
        if op.name in kept or (op.name in removed and removed[op.name] != uses[0].index):
            return None
        if op.name not in removed:
            return op if uses[0].index == 0 else None


def _inverse(first: Op, second: Op, graph: Graph) -> bool:
    if operator(first.kind).permutes and operator(second.kind).permutes:
        rank = rank_of(graph, first.inputs[0])
        if rank is None:
            return False
        a, b = (op.attrs.get("perm") or list(range(rank))[::-1] for op in (first, second))
        return [a[i] for i in b] == list(range(rank))
    if operator(first.kind).reshapes and operator(second.kind).reshapes:
        before, after = graph.shape(first.inputs[0]), graph.shape(second.outputs[0])
        return before is not None and None not in before and before == after
    return False
