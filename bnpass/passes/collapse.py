"""Collapse: a region that is linear in one value becomes one operator.

1. Parallel branches (convolutions of any kernel, stride, group, dilation and zero padding, maps,
   the identity, sums, pools that average their padding, Concat) on one root add up: outside of the
   root there is zero for all of them.
2. One behind the other is exact where the one in front is 1x1, unpadded and without bias, or where
   nothing is padded behind it.
3. The region goes when one operator has no more multiply-adds and no more weights.

Source: RepVGG (arXiv:2101.03697), Diverse Branch Block (arXiv:2103.13425), MobileOne (2206.04040).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bnpass.ir.edits import Collapse
from bnpass.ir.graph import Graph, Op
from bnpass.ir.linear import (
    Linear,
    NotLinearError,
    attributes_of,
    kernel_of,
    weights_of,
    window_of,
)
from bnpass.ir.ranks import rank_of
from bnpass.passes.atoms import Atoms, find_atoms
from bnpass.passes.fold import FoldEntry
from bnpass.passes.linear_forms import JOINS, LAYERS, LINEAR, Domain, LinearForms
from bnpass.passes.select import matches, selector
from bnpass.report.plans import shown_collapse
from bnpass.report.shown import Shown
from bnpass.report.tables import Table

_ROOTS = 12  # roots that are kept for a value, the nearest first
_OPERATORS = 64  # of one region
MODES = ("bn", "all", "none")
"""What collapses: regions with a BatchNorm in them, all, or none."""


@dataclass(frozen=True)
class CollapseEntry:
    """What became of one region.

    Attributes:
        node: the operator that makes its result.
        nodes: all of its operators.
        into: the operator that stays; empty: all stay.
        norms: the BatchNormalizations among them.
        weights: how many weights they have, and how many the one operator has.
        multiply_adds: the same, for each position of the root.
        reason: why it stays.
    """

    node: str
    nodes: tuple[str, ...]
    into: str = ""
    norms: tuple[str, ...] = ()
    weights: tuple[int, int] = (0, 0)
    multiply_adds: tuple[float, float] = (0.0, 0.0)
    reason: str = ""


@dataclass(frozen=True, repr=False)
class CollapsePlan(Shown):
    """What collapses in one graph, and why not more.

    Attributes:
        entries: regions that go, and joins of branches that stay with the reason.
        edits: what is to be done.
    """

    entries: list[CollapseEntry] = field(default_factory=list)
    edits: list[Collapse] = field(default_factory=list)

    @property
    def collapsed(self) -> list[CollapseEntry]:
        """Regions that become one operator."""
        return [entry for entry in self.entries if entry.into]

    @property
    def refused(self) -> list[CollapseEntry]:
        """Joins of branches that stay."""
        return [entry for entry in self.entries if not entry.into]

    def shown(self) -> list[Table | str]:
        """What the command prints of it."""
        return shown_collapse(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"regions": [asdict(entry) for entry in self.entries]}


def as_folds(entries: Iterable[CollapseEntry]) -> list[FoldEntry]:
    """Every BatchNorm that goes with a region, or a region without one, as an entry of a fold."""
    return [
        FoldEntry(name, kind, entry.nodes, "collapsed", (entry.into,))
        for entry in entries
        if entry.into
        for name, kind in [(n, "BatchNormalization") for n in entry.norms]
        or [(entry.node, "region")]
    ]


def plan_collapse(
    graph: Graph, *, mode: str = "all", only: Sequence[str] = (), skip: Sequence[str] = ()
) -> CollapsePlan:
    """Plan the collapse of every linear region of a graph.

    Args:
        graph: the view.
        mode: one of :data:`MODES`.
        only, skip: glob patterns on operator names; of ``only`` the BatchNorms of a region, or
            where it has none all of its operators, have to match one.
    """
    plan = CollapsePlan()
    operators = ((op.kind, op.inputs, op.outputs) for op in graph.ops_in_order)
    if mode == "none" or not has_candidates(operators, graph.constants):
        return plan
    taken: set[str] = set()
    atoms = find_atoms(graph)
    for dense in (False, True):
        _Finder(graph, atoms, Domain(dense), mode, only, skip).find(plan, taken)
    order = graph.order
    plan.entries.sort(key=lambda entry: order[entry.node])
    plan.edits.sort(key=lambda edit: order[edit.carrier.name])
    return plan


def has_candidates(
    operators: Iterable[tuple[str, Sequence[str], Sequence[str]]], constants: Container[str]
) -> bool:
    """Whether linear operators meet at all, or layers follow each other; cheap.

    Args:
        operators: (kind, inputs, outputs), in topological order.
        constants: names of values that are known to be constant.
    """
    layered: set[str] = set()  # values that a layer has made, but for maps behind it
    for kind, inputs, outputs in operators:
        if kind not in LINEAR:
            continue
        behind = not layered.isdisjoint(inputs)
        if behind and kind in LAYERS:
            return True
        if behind and kind in JOINS and sum(name not in constants for name in inputs) > 1:
            return True
        if behind or kind in LAYERS:
            layered.update(outputs)
    return False


@dataclass(frozen=True)
class _Cost:
    weights: int = 0
    multiply_adds: float = 0.0


class _Finder:
    """Looks for regions in one domain."""

    def __init__(
        self,
        graph: Graph,
        atoms: Atoms,
        domain: Domain,
        mode: str,
        only: Sequence[str],
        skip: Sequence[str],
    ) -> None:
        self.graph, self.mode, self.domain = graph, mode, domain
        self.selected, self.skip = selector(only, ()), skip
        self.forms = LinearForms(graph, atoms, domain, numbers=False)
        self.exact = LinearForms(graph, atoms, domain, numbers=True)
        self.functions: dict[str, dict[str, Linear]] = {}
        self.reads: dict[str, list[str]] = {}
        self.why: dict[str, str] = {}

    def find(self, plan: CollapsePlan, taken: set[str]) -> None:
        """Add regions to a plan, the last of the graph first."""
        for op in self.graph.ops_in_order:
            self._note(op)
        for op in reversed(self.graph.ops_in_order):
            if op.name in taken or len(self.reads.get(op.name, ())) == 0:
                continue
            reason = self._collapse(op, plan, taken)
            if reason and op.name not in taken:
                norms = self._norms_in_front(op)
                if norms:
                    plan.entries.append(CollapseEntry(op.name, (op.name,), norms=norms,
                                                      reason=reason))  # fmt: skip

    # --- what values are functions of

    def _note(self, op: Op) -> None:
        try:
            data = self.forms.data(op)
        except NotLinearError as refusal:
            self.why[op.name] = f"{op.kind} {op.name!r}: {refusal}"
            return
        if not data:
            return
        self.reads[op.name] = data
        inputs = [self._of(value) for value in data]
        roots = [root for root in inputs[0] if all(root in other for other in inputs)]
        found: dict[str, Linear] = {}
        for root in roots:
            try:
                found[root] = self.forms.of(op, [other[root] for other in inputs], root)
            except NotLinearError as refusal:
                self.why[op.name] = f"{op.kind} {op.name!r}: {refusal}"
        own = self.forms.identity(op.outputs[0])
        nearest = dict(list(found.items())[: _ROOTS - 1])
        self.functions[op.outputs[0]] = nearest if own is None else {op.outputs[0]: own, **nearest}

    def _of(self, value: str) -> dict[str, Linear]:
        known = self.functions.get(value)
        if known is None:
            own = self.forms.identity(value)
            known = self.functions[value] = {} if own is None else {value: own}
        return known

    # --- regions

    def _collapse(self, op: Op, plan: CollapsePlan, taken: set[str]) -> str:
        """Take the largest region that ends in an operator; or say why there is none."""
        result, reason = op.outputs[0], ""
        for root, function in reversed(self.functions[result].items()):
            region = None if root == result else self._region(op, root, taken)
            if region is None or not self._wanted(region):
                continue
            before, after = self._cost_of(region, root), _cost(function)
            if after.weights > before.weights or after.multiply_adds > before.multiply_adds:
                reason = reason or (
                    f"one operator would have {after.weights} weights instead of {before.weights}")
                continue
            self._take(op, root, region, (before, after), plan)
            taken.update(one.name for one in region)
            return ""
        return reason or self._reason(op)

    def _region(self, end: Op, root: str, taken: set[str]) -> list[Op] | None:
        """All operators between a root and the one at the end; None where one is read outside."""
        names, stack = {end.name}, [end]
        while stack:
            for value in self.reads.get(stack.pop().name, ()):
                maker = self.graph.producer(value)
                if value == root or maker is None or maker.name in names:
                    continue
                names.add(maker.name)
                stack.append(maker)
        if names & taken or len(names) > _OPERATORS:
            return None
        region = sorted((self.graph.ops[n] for n in names), key=lambda o: self.graph.order[o.name])
        inner = [value for op in region if op is not end for value in op.outputs if value]
        for value in inner:
            outside = any(use.op.name not in names for use in self.graph.uses(value))
            if outside or self.graph.is_output(value):
                return None
        return region

    def _wanted(self, region: list[Op]) -> bool:
        layers = [op for op in region if op.kind in LAYERS]
        joins = [op for op in region if op.kind in JOINS and len(self.reads[op.name]) > 1]
        weighted = [op for op in layers if op.kind != "AveragePool"]
        norms = [op for op in region if op.kind == "BatchNormalization"]
        if not weighted or (len(layers) < 2 and not joins):
            return False
        if self.mode == "bn" and not norms:
            return False
        skipped = any(matches(op.name, self.skip) for op in region)
        return not skipped and all(map(self.selected, norms or region))

    def _cost_of(self, region: list[Op], root: str) -> _Cost:
        """Of all operators of a region, for each position of the root."""
        weights, adds = 0, 0.0
        for op in region:
            held = self.functions[op.outputs[0]][root]
            positions = 1 / math.prod(held.stride)
            if op.kind in LAYERS:
                inner = self.functions[self.reads[op.name][0]][root]
                own = weights_of(self.forms.layer(op, inner))
                weights += 0 if op.kind == "AveragePool" else own
                adds += own * positions
            else:
                parameters = held.channels[0]
                weights += parameters if op.kind == "BatchNormalization" else 0
                adds += parameters * positions
        return _Cost(weights, adds)

    def _take(
        self, end: Op, root: str, region: list[Op], costs: tuple[_Cost, _Cost], plan: CollapsePlan
    ) -> None:
        before, after = costs
        function = self._numbers(end, root, region)
        carrier = self._carrier(region)
        edit = _edit(region, carrier, root, function, self.graph, dense=self.domain.dense)
        plan.edits.append(edit)
        plan.entries.append(
            CollapseEntry(
                end.name,
                tuple(op.name for op in region),
                carrier.name,
                tuple(op.name for op in region if op.kind == "BatchNormalization"),
                (before.weights, after.weights),
                (before.multiply_adds, after.multiply_adds),
            )
        )

    def _numbers(self, end: Op, root: str, region: list[Op]) -> Linear:
        own = self.exact.identity(root)
        assert own is not None
        values = {root: own}
        for op in region:
            inputs = [values[value] for value in self.reads[op.name]]
            values[op.outputs[0]] = self.exact.of(op, inputs, root)
        return values[end.outputs[0]]

    def _carrier(self, region: list[Op]) -> Op:
        """The layer with the most weights: its name stays."""
        layers = [op for op in region if op.kind in LAYERS and op.kind != "AveragePool"]

        def size(op: Op) -> int:
            constant = self.graph.constant(op.inputs[1])
            return 0 if constant is None else math.prod(constant.shape)

        return max(layers, key=size)

    # --- why not

    def _reason(self, op: Op) -> str:
        """Of branches that meet here: what stopped one of them."""
        if op.kind not in JOINS:
            return ""
        seen: set[str] = set()
        stack = [op]
        while stack:
            one = stack.pop()
            if one.name in self.why:
                return self.why[one.name]
            for value in self.reads.get(one.name, ()):
                maker = self.graph.producer(value)
                if maker is not None and maker.name not in seen and len(seen) < _OPERATORS:
                    seen.add(maker.name)
                    stack.append(maker)
        return ""

    def _norms_in_front(self, op: Op) -> tuple[str, ...]:
        if op.kind not in JOINS:
            return ()
        makers = [self.graph.producer(value) for value in op.inputs]
        kinds = [m.name for m in makers if m is not None and m.kind == "BatchNormalization"]
        return tuple(kinds)


def _cost(f: Linear) -> _Cost:
    weights = weights_of(f)
    return _Cost(weights, weights / math.prod(f.stride))


def _edit(
    region: list[Op], carrier: Op, root: str, f: Linear, graph: Graph, *, dense: bool
) -> Collapse:
    assert f.bias is not None
    result = region[-1].outputs[0]
    bias = f.bias if f.biased and np.any(f.bias) else None
    ops = tuple(region)
    if not dense:
        window = window_of(f)
        attrs = attributes_of(f, window)
        return Collapse(ops, carrier, root, result, "Conv", kernel_of(f, window), bias, attrs)
    (tap,) = f.taps.values()
    assert tap is not None
    if rank_of(graph, root) == 2 and bias is not None:
        return Collapse(ops, carrier, root, result, "Gemm", tap, bias, {"transB": 1})
    return Collapse(ops, carrier, root, result, "MatMul", tap.T, bias, {})
