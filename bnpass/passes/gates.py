"""Values that are multiplied by a gate made of themselves: squeeze and excitation.

No shift can pass such a product, and the layer in front of it would go without a BatchNorm, where
its authors put one (arXiv:1709.01507). One on the value itself folds into that layer; the gate then
sees it normalised, too.
"""

from __future__ import annotations

from collections.abc import Set

from bnpass.ir.graph import Graph, Op
from bnpass.ir.operators import operator


def gated(product: Op, graph: Graph, gates: Set[str]) -> str:
    """The value that a product scales by a gate made of it, and that nothing else reads; or empty.

    Args:
        product: any operator.
        graph: the view.
        gates: names of nonlinearities that are gates.
    """
    values = [v for v in product.inputs if v and graph.constant(v) is None]
    if product.kind != "Mul" or len(set(values)) != 2:
        return ""
    for value, gate in (values, values[::-1]):
        if _is_gate(gate, graph, gates) and _ends_in(value, product, graph):
            return value
    return ""


def _is_gate(value: str, graph: Graph, gates: Set[str]) -> bool:
    """Whether a value is what a gate makes, moved and scaled at most."""
    op = graph.producer(value)
    while op is not None and op.name not in gates:
        row = operator(op.kind)
        free = [v for v in op.inputs if v and graph.constant(v) is None]
        passes = row.passes_on or (row.affine and len(free) == 1)
        op = graph.producer(op.inputs[0]) if passes and op.inputs[0] in free else None
    return op is not None


def _ends_in(value: str, product: Op, graph: Graph) -> bool:
    """Whether a product is all that a value leads to, on more ways than one."""
    uses = graph.uses(value)
    stack, seen = [value], {value}
    while stack:
        name = stack.pop()
        if graph.is_output(name) or any(use.index < 0 for use in graph.uses(name)):
            return False
        for use in graph.uses(name):
            if use.op is not product:
                new = [o for o in use.op.outputs if o and o not in seen]
                seen.update(new)
                stack += new
    return len(uses) > 1 and any(use.op is product for use in uses)
