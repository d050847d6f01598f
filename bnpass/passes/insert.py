"""Insert: a BatchNorm in front of every nonlinearity, where it can be folded back again.

1. The site is the latest value between the absorbers and the nonlinearity at which a map with
   any gamma and beta folds backward by the table of rules; in front of Dropout, Cast, Resize,
   Expand, Tile and Pad, whose outputs have other statistics in training or hold copies.
2. Where no such value exists (a MaxPool, a residual Add whose skip is no layer), the walk goes on
   in front of it: every branch that leads to an absorber gets its own BatchNorm. So it does where
   the map would cross a sum of several values that all have sites of their own: with one
   BatchNorm on the sum only all branches together are scale-invariant, and their ratio drifts.
3. The BatchNorm replaces the value for all its readers, so all of them must lead to sites only.
4. A bias that reaches a site as nothing but a per-channel constant goes: beta takes its place.

Source: arXiv:1502.03167, section 3.2 (BN goes on Wu, right before g; b is dropped).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np

from bnpass import limits
from bnpass.ir.affine import Map
from bnpass.ir.edits import GraphEdits
from bnpass.ir.graph import Dim, Graph, Op
from bnpass.ir.operators import RECURRENT, operator
from bnpass.passes.atoms import find_atoms
from bnpass.passes.biases import drop_biases
from bnpass.passes.gates import gated
from bnpass.passes.nonlinear import (
    Nonlinearity,
    find_nonlinearities,
    is_gate,
    reaches_output,
)
from bnpass.passes.planner import Planner
from bnpass.passes.propagation import Propagation
from bnpass.passes.residual import residual_ends
from bnpass.passes.select import matches
from bnpass.passes.sites import InsertionPoint, InsertPlan, Policy, Site, Skip, any_map
from bnpass.rules import MapRefusedError

_NORMED = "already normalised"


def plan_insert(graph: Graph, policy: Policy | None = None) -> InsertPlan:
    """Plan the insertion into a graph."""
    return _Inserter(graph, policy or Policy()).plan()


class _Inserter:
    def __init__(self, graph: Graph, policy: Policy) -> None:
        self.graph, self.policy = graph, policy
        self.planner = Planner(graph, find_atoms(graph))
        self.entries: dict[str, set[str]] = {}  # value -> operators of chosen regions reading it
        self.recurrent: set[str] = set()  # inputs of recurrent layers: gates lie on the last axis
        self.gates: frozenset[str] = frozenset()
        self._other_readers: dict[str, str] = {}
        self._places: dict[str, list[InsertionPoint] | str] = {}

    def plan(self) -> InsertPlan:
        found = find_nonlinearities(self.graph)
        self.gates = frozenset(n.op.name for n in found if is_gate(n, self.graph))
        last = reaches_output(self.graph)
        chosen, skipped = [], []
        for n in found:
            reason = self.unwanted(n, last)
            if reason:
                skipped.append(Skip(n.op.name, n.op.kind, reason))
            else:
                chosen.append(n)
                for entry in n.entries:
                    self.entries.setdefault(entry, set()).update(n.region)
                if n.kind in RECURRENT:
                    self.recurrent.update(n.entries)
        places: dict[str, tuple[InsertionPoint, list[str]]] = {}
        for n in chosen:
            skipped += self._locate(n, places)
        if self.policy.linear:
            self._linear(places, last)
        sites = [self._site(place, names) for place, names in places.values()]
        sites = drop_biases(sites, places, self.graph, self.planner)
        if self.policy.zero_gamma:
            sites = self._zeroed(sites)
        order = self.graph.order
        skipped.sort(key=lambda s: order[s.node])
        committed = self.planner.committed
        known = committed.relations.correspondences(self.graph, committed.removals)
        return InsertPlan(sites, skipped, len(found), edits=GraphEdits(correspondences=known))

    # --- which

    def unwanted(self, n: Nonlinearity, last: frozenset[str]) -> str:
        """Why the policy leaves a nonlinearity out; empty: it is wanted."""
        policy = self.policy
        names = [n.op.name, n.op.kind, n.kind]
        if policy.before and not any(k.lower() in map(str.lower, policy.before) for k in names[1:]):
            return "its type is not among those asked for"
        if policy.only and not any(matches(x, policy.only) for x in names):
            return "not among those asked for"
        if any(matches(x, policy.skip) for x in names):
            return "skipped as asked"
        if not policy.gates and is_gate(n, self.graph):
            return "a gate: its result only multiplies another path (--gates includes it)"
        if not policy.last and n.op.name in last:
            return "the last nonlinearity in front of an output (--last includes it)"
        return ""

    # --- where

    def _locate(
        self, n: Nonlinearity, places: dict[str, tuple[InsertionPoint, list[str]]]
    ) -> list[Skip]:
        reasons = []
        for entry in n.entries:
            found = self.find(entry)
            if isinstance(found, str):
                found = self._force(entry, n, found)
            if isinstance(found, str):
                reasons.append(found)
                continue
            for place in found:
                key = place.value if place.readers is None else f"{place.value} {n.op.name}"
                names = places.setdefault(key, (place, []))[1]
                if n.op.name not in names:
                    names.append(n.op.name)
        if len(reasons) == len(n.entries):
            return [Skip(n.op.name, n.op.kind, reasons[0])]
        return []

    def _linear(
        self, places: dict[str, tuple[InsertionPoint, list[str]]], last: frozenset[str]
    ) -> None:
        """Places behind the layers that have none yet: another layer follows them directly."""
        taken = {name for place, _ in places.values() for name in place.propagation.into}
        copied = {op.name for place, _ in places.values() for op in place.clones}
        for op in self.graph.ops_in_order:
            if not operator(op.kind).layer or operator(op.kind).reads_part or op.name in taken:
                continue
            if op.name in last and not self.policy.last:
                continue
            value = self._with_bias(op)
            if any(operator(use.op.kind).norm for use in self.graph.uses(value)):
                continue
            if any(use.op.name in copied for use in self.graph.uses(value)):
                continue  # the copy reads the value as it is
            with suppress(MapRefusedError):
                place = self._here(value)
                if op.name in place.propagation.into:
                    places.setdefault(place.value, (place, []))

    def _with_bias(self, op: Op) -> str:
        """A layer's result, the constant that a lone Add behind it adds included."""
        value = op.outputs[0]
        uses = self.graph.uses(value)
        if len(uses) == 1 and uses[0].op.kind == "Add" and not self._sums(uses[0].op):
            return uses[0].op.outputs[0]
        return value

    def _zeroed(self, sites: list[Site]) -> list[Site]:
        """The same sites; those that end a residual branch start with gamma 0."""
        ends = residual_ends(
            self.graph,
            {site.value for site in sites},
            lambda op: operator(op.kind).layer,
            self._sums,
            _may_cross,
        )
        return [replace(site, zero=site.value in ends) for site in sites]

    def _force(self, entry: str, n: Nonlinearity, reason: str) -> list[InsertionPoint] | str:
        """What the policy allows where no place is legal: a clone, or a BatchNorm that stays."""
        if self.policy.clone and self.other_reader(entry):
            try:
                place = self._here(entry)
            except MapRefusedError as refusal:
                reason = refusal.reason
            else:
                return [self._cloned(place, n)]
        if not self.policy.allow_unfoldable or _NORMED in reason:
            return reason
        shape = self.graph.shape(entry)
        if shape is None or len(shape) < 2 or not isinstance(shape[1], int):
            return reason
        return [InsertionPoint(entry, 1, shape[1], len(shape), Propagation(), n.region)]

    def _cloned(self, place: InsertionPoint, n: Nonlinearity) -> InsertionPoint:
        """The same place on a copy of everything from the layers on, for this reader alone."""
        order = self.graph.order
        names = sorted(place.propagation.crossed, key=lambda name: order[name])
        clones = tuple(self.graph.ops[name] for name in names)
        return replace(place, readers=n.region, clones=clones)

    def find(self, value: str) -> list[InsertionPoint] | str:
        """Places for BatchNorms that normalise what ``value`` is made of, or why there is none."""
        known = self._places.get(value)
        if known is None:
            self._places[value] = "a cycle"
            known = self._places[value] = self._find(value)
        return known

    def _find(self, value: str) -> list[InsertionPoint] | str:
        other = self.other_reader(value)
        if other:
            return other
        producer = self.graph.producer(value)
        if producer is None:
            return f"no layer in front: {value!r} is an input of the graph"
        reason = f"a BatchNorm stands in front of {producer.kind} {producer.name!r}"
        if not operator(producer.kind).norm_in_front:
            try:
                place = self._here(value)
                return self._on_branches(place, producer) or [place]
            except MapRefusedError as refusal:
                reason = refusal.reason
        places = self._in_front_of_gate(producer)
        if places:
            return places
        if not _may_cross(producer) or value in self.recurrent:
            return reason
        return self._branches(producer) or self._deeper_reason(producer, reason)

    def _in_front_of_gate(self, product: Op) -> list[InsertionPoint]:
        """The place on a value that is multiplied by a gate made of itself."""
        value = gated(product, self.graph, self.gates)
        if value:
            with suppress(MapRefusedError):
                return [self._here(value)]
        return []

    def _branches(self, op: Op) -> list[InsertionPoint]:
        found: list[InsertionPoint] = []
        for name in _data_inputs(op):
            if self.graph.constant(name) is None:
                places = self.find(name)
                if not isinstance(places, str):
                    found += places
        return self._as_branches(found, op)

    def _as_branches(self, places: list[InsertionPoint], op: Op) -> list[InsertionPoint]:
        """The same places, noted as those of one sum's branches where they are that."""
        if not self._sums(op):
            return places
        return [replace(place, branch_of=place.branch_of or op.name) for place in places]

    def _on_branches(self, place: InsertionPoint, op: Op) -> list[InsertionPoint]:
        """The places in front of a sum that ``place`` stands behind; none if it is to stay there.

        Several branches, each with places of its own; ``op`` is what makes the place's value.
        """
        if self.policy.sums != "branches" or place.value in self.recurrent:
            return []
        if not any(self._sums(self.graph.ops[name]) for name in place.propagation.crossed):
            return []
        values = [v for v in dict.fromkeys(_data_inputs(op)) if self.graph.constant(v) is None]
        found = [self.find(value) for value in values] if _may_cross(op) else ["a layer"]
        if any(isinstance(places, str) for places in found):
            return []
        places = {p.value: p for places in found if not isinstance(places, str) for p in places}
        return self._as_branches(list(places.values()), op) if len(places) > 1 else []

    def _sums(self, op: Op) -> bool:
        """Whether an operator adds several computed values."""
        computed = {name for name in op.inputs if name and self.graph.constant(name) is None}
        return operator(op.kind).sum and len(computed) > 1

    def _deeper_reason(self, op: Op, reason: str) -> str:
        inner = [self.find(n) for n in _data_inputs(op) if self.graph.constant(n) is None]
        texts = [r for r in inner if isinstance(r, str)]
        normed = [r for r in texts if r.startswith(_NORMED)]
        return (normed or texts)[0] if normed or len(texts) == 1 else reason

    def _axes(self, value: str, shape: tuple[Dim, ...]) -> list[int]:
        """Where channels may lie: axis 1, else the last one; an axis of one entry comes last."""
        last = len(shape) - 1
        axes = [last] if value in self.recurrent else list(dict.fromkeys((1, last)))
        return sorted((a for a in axes if 0 < a <= last), key=lambda a: shape[a] == 1)

    def _here(self, value: str) -> InsertionPoint:
        """A place at ``value`` itself: the channel axis is the one along which it folds."""
        shape = self.planner.context.shape(value)
        refusals = []
        for axis in self._axes(value, shape):
            size = shape[axis]
            if not isinstance(size, int):
                continue
            if size > limits.allowed("channels"):  # of a declaration, not of a weight
                refusals.append(MapRefusedError(
                    f"{value!r} has {size:,} channels, beyond the limit ({limits.VARIABLE}="
                    "channels=N lifts it)"))
                continue
            try:
                propagation = self._layered(value, any_map(axis, len(shape), size))
                return InsertionPoint(value, axis, size, len(shape), propagation)
            except MapRefusedError as refusal:
                refusals.append(refusal)
        raise (
            refusals[0]
            if refusals
            else MapRefusedError(f"the number of channels of {value!r} is not known")
        )

    def _layered(self, value: str, m: Map) -> Propagation:
        """How a map would fold, into layers where the arithmetic behind them could take it too."""
        propagation = self.planner.place(value, m)
        if not any(_is_site_layer(self.graph.ops[name]) for name in propagation.into):
            propagation = self.planner.place(value, m, past_constants=True)
        self._check_layers(propagation)
        return propagation

    def _check_layers(self, propagation: Propagation) -> None:
        ops = [self.graph.ops[name] for name in propagation.into]
        norms = [op for op in ops if operator(op.kind).norm]
        if norms and not (self.policy.norms and norms[0].kind != "BatchNormalization"):
            raise MapRefusedError(f"{_NORMED} by {norms[0].kind} {norms[0].name!r}")
        if not norms and not any(operator(op.kind).layer for op in ops):
            raise MapRefusedError("no layer in front: there is only per-channel arithmetic")

    def other_reader(self, value: str) -> str:
        """Why some reader of a value must not see it normalised; empty if all lead to sites."""
        known = self._other_readers.get(value)
        if known is None:
            known = self._other_readers[value] = self._find_other_reader(value)
        return known

    def _find_other_reader(self, value: str) -> str:
        if self.graph.is_output(value):
            return f"{value!r} is also an output of the graph"
        for use in self.graph.uses(value):
            op = use.op
            if op.name in self.entries.get(value, ()) or operator(op.kind).sees_shape:
                continue
            also = f"{value!r} is also read by {op.kind} {op.name!r}"
            if use.index < 0 or not _may_cross(op) or value not in _data_inputs(op):
                return also
            for name in op.outputs:
                if name and (self.graph.uses(name) or self.graph.is_output(name)):
                    deeper = self.other_reader(name)
                    if deeper:
                        return f"{also} ({deeper})"
        return ""

    # --- what

    def _site(self, place: InsertionPoint, names: list[str]) -> Site:
        producer = self.graph.producer(place.value)
        base = producer.name if producer is not None else place.value
        absorbers = [n for n in place.propagation.into if _is_site_layer(self.graph.ops[n])]
        return Site(
            name=f"{base}_bn" if place.readers is None else f"{names[0]}_bn",
            value=place.value,
            axis=place.axis,
            channels=place.channels,
            rank=place.rank,
            nonlinearities=tuple(names),
            absorbers=tuple(absorbers),
            constant=np.zeros(place.channels),
            readers=place.readers,
            clones=place.clones,
            branch_of=place.branch_of,
        )


def _may_cross(op: Op) -> bool:
    """Operators that a site may lie in front of: those that maps pass, not layers, not norms."""
    row = operator(op.kind)
    stops = row.layer or row.norm or row.recurrent or row.nonlinearity or row.product
    return row.rule is not None and not stops


def _is_site_layer(op: Op) -> bool:
    """Whether what it makes is worth normalising: a layer, or a norm."""
    row = operator(op.kind)
    return row.layer or row.norm


def _data_inputs(op: Op) -> list[str]:
    """Inputs that hold data, not shapes, axes, ratios or sizes."""
    if operator(op.kind).joins:
        return [name for name in op.inputs if name]
    return op.inputs[:1]
