"""Recurrent layers: the input's contribution taken out of them for a BatchNorm, and put back.

Split: RNN(x; W, Wb, R, Rb) becomes RNN(x*W + Wb; identity, 0, R, Rb): the MatMul's output is the
input-to-hidden contribution of all gates and directions, over time and batch, and a value like any
other to normalise.

Join, the inverse: a MatMul (and the Add behind it) as wide as all gates of a layer, in front of it
and read by nothing else, goes into the layer's W and Wb, whatever training has made of them.

Sources: Laurent et al. 2015 (arXiv:1510.01378), Cooijmans et al. 2016 (arXiv:1603.09025); ONNX
operators RNN, LSTM, GRU: X (time, batch, input), W (directions, gates*hidden, input),
B (directions, 2*gates*hidden) = Wb, Rb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from bnpass.ir.correspondence import Correspondences
from bnpass.ir.edits import AddedOperator, GraphEdits, NewConstant, NewInput
from bnpass.ir.graph import Constant, Graph, Op
from bnpass.ir.operators import operator
from bnpass.passes.fold import FoldEntry, FoldPlan
from bnpass.passes.nonlinear import is_split
from bnpass.passes.plan import lines


@dataclass(frozen=True)
class SplitEntry:
    """A recurrent layer that is split, or stays and why."""

    node: str
    kind: str
    reason: str = ""


@dataclass(frozen=True)
class SplitPlan:
    """Which recurrent layers are split.

    Attributes:
        entries: every layer that was asked for.
        edits: what is to be done; every value of the graph stays what it is.
        notes: lines for people.
    """

    entries: list[SplitEntry] = field(default_factory=list)
    edits: GraphEdits = field(default_factory=GraphEdits)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        done = ((e, "stays" if e.reason else "is split") for e in self.entries)
        return lines(done, "no recurrent layer")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"split": [vars(entry) for entry in self.entries], "notes": self.notes}


def plan_split(graph: Graph, chosen: Callable[[Op], bool]) -> SplitPlan:
    """Plan the split of every layer that is chosen and not split yet."""
    plan = SplitPlan()
    constants: list[NewConstant] = []
    added: list[AddedOperator] = []
    for op in graph.ops_in_order:
        if not operator(op.kind).recurrent or is_split(op, graph) or not chosen(op):
            continue
        if not constant_weights(op, graph):
            plan.entries.append(SplitEntry(op.name, op.kind, "its weights are no constants"))
            plan.notes.append(f"{op.kind} {op.name!r}: its weights are no constants")
            continue
        plan.entries.append(SplitEntry(op.name, op.kind))
        added += _in_front(op, graph)
        constants += _what_stays(op, graph)
        if op.input(4):
            plan.notes.append(
                f"{op.kind} {op.name!r}: padded time steps (sequence_lens) enter the statistics"
            )
    last = {one.before: one.op.outputs[0] for one in added}
    reads = tuple(NewInput(op, 0, value) for op, value in last.items())
    edits = GraphEdits(constants=tuple(constants), added=tuple(added), inputs=reads)
    return replace(plan, edits=edits)


def _in_front(op: Op, graph: Graph) -> list[AddedOperator]:
    """The MatMul, and the Add where there is a bias, that make what the input contributes."""
    weight = _float64(op.inputs[1], graph)
    value, width = f"{op.name}_contribution", weight.shape[0] * weight.shape[1]
    product = Op(f"{op.name}_input", "MatMul", [op.inputs[0], ""], [value])
    added = [AddedOperator(product, {1: weight.reshape(width, -1).T}, op.inputs[1], op,
                           {1: f"{op.name}.input_weight"})]  # fmt: skip
    if op.input(3):
        bias = _float64(op.inputs[3], graph)[:, : weight.shape[1]]
        add = Op(f"{op.name}_input_bias", "Add", [value, ""], [f"{op.name}_biased"])
        added.append(AddedOperator(add, {1: bias.reshape(-1)}, op.inputs[3], op,
                                   {1: f"{op.name}.input_bias"}))  # fmt: skip
    return added


def _what_stays(op: Op, graph: Graph) -> Iterator[NewConstant]:
    """The layer's own weights: what recurs, and the identity."""
    if op.input(3):
        yield NewConstant(op, 3, partial(_state_bias, op, graph), f"{op.name}.state_bias")
    yield NewConstant(op, 1, partial(_identity, op, graph), f"{op.name}.identity")


def _state_bias(op: Op, graph: Graph) -> np.ndarray:
    bias = _float64(op.inputs[3], graph)
    bias[:, : bias.shape[1] // 2] = 0
    return bias


def _identity(op: Op, graph: Graph) -> np.ndarray:
    weight = graph.constant(op.inputs[1])
    assert weight is not None
    directions, rows, _ = weight.shape
    return np.eye(directions * rows).reshape(directions, rows, directions * rows)


def plan_join(graph: Graph, but: Set[str] = frozenset()) -> FoldPlan:
    """Plan the join of every layer that was split.

    Args:
        graph: the view.
        but: names of layers that are left alone.
    """
    constants: list[NewConstant] = []
    removed: list[tuple[Op, int]] = []
    entries = []
    for name, (product, add) in joinable(graph).items():
        if name in but:
            continue
        op = graph.ops[name]
        entries.append(FoldEntry(name, op.kind, (name,), "forward", (name,)))
        constants.append(NewConstant(op, 1, partial(_weight, op, product, graph)))
        removed.append((product, 0))
        if add is not None:
            constants.append(NewConstant(op, 3, partial(_bias, op, add, graph)))
            removed.append((add, 1 - _shift(add, graph)))
    gone = frozenset(one.outputs[0] for one, _ in removed)  # their shapes are others
    edits = GraphEdits(
        constants=tuple(constants),
        removed=tuple(removed),
        correspondences=Correspondences(gone=gone),
    )
    return FoldPlan(entries, edits)


def joinable(graph: Graph) -> dict[str, tuple[Op, Op | None]]:
    """The MatMul, and the Add behind it, in front of every layer that could take them in."""
    return {
        op.name: pair
        for op in graph.ops_in_order
        if operator(op.kind).recurrent and (pair := _contribution(op, graph)) is not None
    }


def constant_weights(op: Op, graph: Graph) -> bool:
    """Whether a recurrent layer's W and B are constants."""
    names = [op.inputs[1], *([op.inputs[3]] if op.input(3) else [])]
    return all(graph.constant(name) is not None for name in names)


def _contribution(op: Op, graph: Graph) -> tuple[Op, Op | None] | None:
    """The MatMul, and the Add behind it, that make a layer's input and nothing else's."""
    if not is_split(op, graph) or not constant_weights(op, graph):
        return None
    add, product = None, _only_maker(op.inputs[0], graph)
    if product is not None and product.kind == "Add":
        fixed = [i for i in (0, 1) if graph.constant(product.inputs[i]) is not None]
        if len(fixed) != 1 or not _per_gate(graph.constant(product.inputs[fixed[0]]), op, graph):
            return None
        add, product = product, _only_maker(product.inputs[1 - fixed[0]], graph)
    if product is None or product.kind != "MatMul":
        return None
    matrix = graph.constant(product.inputs[1])
    return (product, add) if matrix is not None and len(matrix.shape) == 2 else None


def _per_gate(bias: Constant | None, op: Op, graph: Graph) -> bool:
    """Whether a bias is one number a gate channel, or one for all."""
    weight = graph.constant(op.inputs[1])
    if bias is None or weight is None:
        return False
    size = int(np.prod(bias.shape))
    return size == 1 or (size == weight.shape[2] and bias.shape[-1] == size)


def _only_maker(value: str, graph: Graph) -> Op | None:
    lonely = len(graph.uses(value)) == 1 and not graph.is_output(value)
    return graph.producer(value) if lonely else None


def _shift(add: Op, graph: Graph) -> int:
    """Which input of an Add is the constant."""
    return next(i for i in (0, 1) if graph.constant(add.inputs[i]) is not None)


def _float64(name: str, graph: Graph) -> np.ndarray:
    constant = graph.constant(name)
    assert constant is not None
    return constant.float64()


def _weight(op: Op, product: Op, graph: Graph) -> np.ndarray:
    """W times the matrix of the MatMul."""
    joined: np.ndarray = _float64(op.inputs[1], graph) @ _float64(product.inputs[1], graph).T
    return joined


def _bias(op: Op, add: Op, graph: Graph) -> np.ndarray:
    """B with W times the constant of the Add in its first half."""
    weight = _float64(op.inputs[1], graph)
    shift = _float64(add.inputs[_shift(add, graph)], graph).reshape(-1)
    half = weight.shape[1]
    bias = np.zeros((weight.shape[0], 2 * half))
    if op.input(3):
        bias += _float64(op.inputs[3], graph)
    bias[:, :half] += weight @ np.broadcast_to(shift, (weight.shape[2],))
    return bias
