"""Finds nonlinearities: single operators, and activations that are spelt out.

The entry of a composite activation (``bnpass.passes.composites``) is the value to normalise. An SE
gate x*sigmoid(fc(pool(x))) is none: fc is not elementwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnpass.ir.graph import Graph, Op
from bnpass.ir.operators import OPERATORS, operator
from bnpass.passes.composites import find_activations

COMPOSITE = "composite"

NONLINEARITIES = (
    *(kind for kind, row in OPERATORS.items() if row.nonlinearity or row.recurrent), COMPOSITE,
)  # fmt: skip
"""Kinds that :func:`find_nonlinearities` may find."""

_EXTREMA = frozenset({"Max", "Min"})  # nonlinearities with a constant operand, or several others
_CUTS = _EXTREMA | {"Clip"}


@dataclass(frozen=True)
class Nonlinearity:
    """One nonlinearity.

    Attributes:
        op: the operator that makes its result and names it.
        entries: the values to normalise (more than one only for a maxout).
        region: names of all its operators.
        kind: the operator's kind, or ``composite``.
    """

    op: Op
    entries: tuple[str, ...]
    region: frozenset[str]
    kind: str


def find_nonlinearities(graph: Graph) -> list[Nonlinearity]:
    """All nonlinearities of a graph, in topological order."""
    found = [
        Nonlinearity(one.end, (one.entry,), one.region, COMPOSITE)
        for one in find_activations(graph)
    ]
    taken = frozenset().union(*(n.region for n in found)) if found else frozenset()
    for op in graph.ops_in_order:
        if op.name in taken:
            continue
        single = _single(op, graph)
        if single is not None and not _continues(single, found, graph):
            found.append(single)
    return sorted(found, key=lambda n: graph.order[n.op.name])


def is_split(op: Op, graph: Graph) -> bool:
    """Whether a recurrent layer's input is already the contribution of all gates.

    It is as wide as W then, and made by a MatMul, its bias, or a BatchNorm between two Transposes.
    """
    weight = graph.constant(op.input(1))
    if weight is None or len(weight.shape) != 3:
        return False
    maker = graph.producer(op.inputs[0])
    # what a split and an insertion leave in front of a layer
    made = maker is not None and maker.kind in ("MatMul", "Add", "Transpose", "BatchNormalization")
    return made and weight.shape[2] == weight.shape[0] * weight.shape[1]


# --- single operators


def _single(op: Op, graph: Graph) -> Nonlinearity | None:
    name = frozenset([op.name])
    row = operator(op.kind)
    if row.nonlinearity and op.kind not in _EXTREMA:
        return Nonlinearity(op, (op.inputs[0],), name, op.kind)
    if row.recurrent and is_split(op, graph):
        return Nonlinearity(op, (op.inputs[0],), name, op.kind)
    if op.kind not in _EXTREMA or (graph.dtype(op.outputs[0]) or "float").startswith("int"):
        return None
    free = tuple(dict.fromkeys(v for v in op.inputs if graph.constant(v) is None))
    fixed = [graph.constant(v) for v in op.inputs if graph.constant(v) is not None]
    if fixed and len(free) == 1 and all(c is not None and _scalar(c.shape) for c in fixed):
        return Nonlinearity(op, free, name, op.kind)
    if op.kind == "Max" and len(free) == len(op.inputs) > 1:
        return Nonlinearity(op, free, name, op.kind)
    return None


def _continues(single: Nonlinearity, found: list[Nonlinearity], graph: Graph) -> bool:
    """Min(Max(x, 0), 6) is one nonlinearity: the second operator belongs to the first."""
    if single.op.kind not in _CUTS or len(single.entries) != 1:
        return False
    maker = graph.producer(single.entries[0])
    if maker is None or maker.kind not in _CUTS:
        return False
    if len(graph.uses(single.entries[0])) != 1:
        return False
    for place, other in enumerate(found):
        if other.op is maker:
            region = other.region | single.region
            found[place] = Nonlinearity(single.op, other.entries, region, other.kind)
            return True
    return False


def _scalar(shape: tuple[int, ...]) -> bool:
    return all(n == 1 for n in shape)


# --- gates and last ones


def is_gate(n: Nonlinearity, graph: Graph) -> bool:
    """A bounded nonlinearity whose result only multiplies another path (SE, GLU, attention)."""
    if not operator(n.op.kind).bounded or n.kind == COMPOSITE:
        return False
    stack, multiplied = [n.op.outputs[0]], False
    while stack:
        value = stack.pop()
        if graph.is_output(value):
            return False
        for use in graph.uses(value):
            op = use.op
            free = [v for v in op.inputs if v and graph.constant(v) is None]
            if op.kind == "Mul" and len(free) == 2:
                multiplied = True
            elif use.index == 0 and (operator(op.kind).passes_on or _scales(op, free)):
                stack.append(op.outputs[0])
            elif not operator(op.kind).sees_shape:
                return False
    return multiplied


def _scales(op: Op, free: list[str]) -> bool:
    row = operator(op.kind)
    return row.affine and (row.sum or row.product) and len(free) == 1


def reaches_output(graph: Graph) -> frozenset[str]:
    """Operators from which an output of the graph is reached without any weights in between.

    Of what a Shape reads only the sizes come further: they are no way.
    """
    found: set[str] = set()
    for op in reversed(graph.ops_in_order):
        for name in op.outputs:
            if graph.is_output(name) or any(
                use.op.name in found
                and not (operator(use.op.kind).sees_shape or _has_weights(use.op, graph))
                for use in graph.uses(name)
            ):
                found.add(op.name)
    return frozenset(found)


def _has_weights(op: Op, graph: Graph) -> bool:
    weights = operator(op.kind).weights
    return any(graph.constant(op.input(i)) is not None for i in weights)
