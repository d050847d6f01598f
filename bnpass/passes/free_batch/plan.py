"""A fixed batch size made free, where it provably is the batch.

Axis 0 of every input is followed through the graph. Every operator on the way must treat the
entries along it alike (the rules in :mod:`layers` and :mod:`shaping`); a constant that spells out
the size (a Reshape to ``[1, 256]``) becomes one that does not. Where that cannot be shown, the
operator is named and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnpass.errors import InputError
from bnpass.ir.arithmetic import Numbers, whole
from bnpass.ir.graph import Dim, Graph, Op
from bnpass.ir.operators import operator
from bnpass.passes.free_batch import layers, shaping
from bnpass.passes.free_batch.node import RULES, Batch, BatchNode, Refusal, Repeat, State, Use
from bnpass.passes.free_batch.sizes import computed
from bnpass.passes.plan import lines

__all__ = ["BatchPlan", "Bodies", "common_size", "layers", "plan_free_batch", "shaping"]

Bodies = Mapping[Op, Mapping[str, Graph]]
"""The views of the bodies of operators that have some: operator -> attribute -> view."""

_SIZES: Mapping[str, Sequence[int]] = {
    "Reshape": (1,), "Expand": (1,), "Resize": (2, 3), "ConstantOfShape": (0,),
}  # fmt: skip
"""Inputs that may hold the batch size, of the operators that have a rule for it."""


@dataclass(frozen=True)
class BatchEntry:
    """What changes at one operator."""

    node: str
    kind: str
    what: str
    reason: str = ""


@dataclass
class BatchPlan:
    """What has to change so that every batch size works.

    Attributes:
        symbol: the name of the free dimension; empty if there is nothing to do.
        values: value name -> the axis that is the batch, or N * factor with it.
        constants: use -> the numbers to read there instead: int64 sizes or float32 scales, (n,).
        dropped: uses of an optional input that goes (an initial state of zeros).
        repeated: uses of a constant of one sample that every sample gets.
        entries: the operators that change, in words.
    """

    symbol: str = ""
    values: dict[str, Batch] = field(default_factory=dict)
    constants: dict[Use, np.ndarray] = field(default_factory=dict)
    dropped: set[Use] = field(default_factory=set)
    repeated: dict[Use, Repeat] = field(default_factory=dict)
    entries: list[BatchEntry] = field(default_factory=list)

    @property
    def overrides(self) -> dict[Use, np.ndarray | None]:
        """Use -> the numbers to read there; None where the input goes."""
        return {**self.constants, **dict.fromkeys(self.dropped)}

    def __str__(self) -> str:
        return lines(((e, e.what) for e in self.entries), "no operator has to change")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        axes = {name: {"axis": b.axis, "factor": b.factor} for name, b in self.values.items()}
        changed = [{"node": e.node, "kind": e.kind, "what": e.what} for e in self.entries]
        return {"symbol": self.symbol, "values": axes, "changed": changed}


def common_size(inputs: Mapping[str, tuple[Dim, ...]]) -> int | None:
    """The fixed size of axis 0 of the inputs; None where all of them are free.

    Args:
        inputs: dimensions by name.

    Raises:
        InputError: they differ.
    """
    fixed = {dims[0] for dims in inputs.values() if isinstance(dims[0], int)}
    if len(fixed) > 1:
        listed = ", ".join(f"{n!r} {list(d)}" for n, d in inputs.items())
        raise InputError(f"inputs differ on axis 0: {listed}", "there is no common batch axis")
    return next(iter(fixed), None)


def plan_free_batch(
    graph: Graph, inputs: Iterable[str], size: int, symbol: str, bodies: Bodies
) -> BatchPlan:
    """What has to change; reads shapes and small constants only.

    Args:
        graph: the view, in which sizes that come from the batch size are no constants.
        inputs: the values of which axis 0 is the batch.
        size: its size, in the shapes of the view.
        symbol: the name that it gets.
        bodies: of the If operators: one whose condition is the same in every run is followed.

    Raises:
        InputError: axis 0 is not provably the batch; names the operator that stands in the way.
    """
    follower = _Follower(BatchPlan(symbol), size, bodies)
    follower.states.update(dict.fromkeys(inputs, Batch(0)))
    for op in graph.ops_in_order:
        follower.follow(op, graph)
    follower.plan.values = {n: s for n, s in follower.states.items() if s is not None}
    return follower.plan


class _Follower:
    """Walks the operators in order and collects the plan."""

    def __init__(self, plan: BatchPlan, size: int, bodies: Bodies) -> None:
        self.plan, self.size, self._bodies = plan, size, bodies
        self.states: dict[str, State] = {}
        self._numbers: dict[str, Numbers] = {}

    def follow(self, op: Op, graph: Graph) -> None:
        """Settle where the outputs of an operator carry the batch."""
        node = BatchNode(op, graph, self.size, self.states, self._numbers)
        try:
            if op in self._bodies:
                self._branch(node)
            else:
                self.states.update(zip(op.outputs, self._outputs(node), strict=False))
                self._collect(node)
        except Refusal as reason:
            raise InputError(
                f"the batch size is fixed to {self.size} by {op.kind} {op.name!r}: {reason}",
                "export the model again with a dynamic batch axis",
            ) from None

    def _outputs(self, node: BatchNode) -> Sequence[State]:
        kind, none = node.op.kind, [None] * len(node.op.outputs)
        carried = [i for i in node.given if node.state(i) is not None]
        if operator(kind).sees_shape or not carried:
            made = computed(node)
            if made is not None:
                self._numbers[node.op.outputs[0]] = made
                return none
        sized = [i for i in node.given if node.depends(i)]
        if not set(sized).issubset(_SIZES.get(kind, ())):
            node.refuse("it computes with the batch size")
        if not carried and not sized:
            return none
        rule = layers.elementwise if operator(kind).elementwise else RULES.get(kind)
        if rule is None:
            node.refuse("no rule says how it treats the batch")
        return rule(node)

    def _branch(self, node: BatchNode) -> None:
        """An If whose condition is the same in every run: the branch that it takes."""
        op, bodies = node.op, self._bodies[node.op]
        if op.kind != "If":
            node.refuse("a nested graph is not followed")
        known = whole(node.known(0))
        if known is None:
            node.refuse("its condition is computed")
        body = bodies["then_branch" if known[0] else "else_branch"]
        for inner in body.ops_in_order:
            before = len(self.plan.entries)
            self.follow(inner, body)
            if len(self.plan.entries) > before:
                node.refuse("a constant inside of its branch spells out the batch size")
        for outer, result in zip(op.outputs, body.outputs, strict=True):
            self.states[outer] = self.states.get(result)
            if result in self._numbers:
                self._numbers[outer] = self._numbers[result]

    def _collect(self, node: BatchNode) -> None:
        first, entries = node.op.outputs[0], self.plan.entries
        for index, values in node.replaced.items():
            real = bool(values) and isinstance(values[0], float)
            self.plan.constants[first, index] = np.array(values, np.float32 if real else np.int64)
            entries.append(_entry(node, f"reads {values} as input {index}"))
        for index in node.dropped:
            self.plan.dropped.add((first, index))
            entries.append(_entry(node, f"loses input {index}"))
        for index, repeat in node.repeated.items():
            self.plan.repeated[first, index] = repeat
            entries.append(_entry(node, f"reads input {index} once for every sample"))


def _entry(node: BatchNode, what: str) -> BatchEntry:
    return BatchEntry(node.op.name, node.op.kind, what)
