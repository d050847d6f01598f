"""Sends maps through a graph by the table of rules: all or nothing for one map.

Backward, the operators between a map and its absorbers are visited from the last to the first, so
that whatever reads a value has asked before the value's producer is asked; forward, from the first
to the last. Where a rule has alternatives, the first that leads to absorbers everywhere is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bnpass.ir.affine import Map, at_channel, infinite_channel
from bnpass.ir.graph import Graph, Op, Use
from bnpass.ir.operators import RULES, operator
from bnpass.passes.asks import filled, merged_asks, settle_unread
from bnpass.passes.atoms import Atoms
from bnpass.passes.committed import Committed
from bnpass.passes.context import GraphContext
from bnpass.passes.propagation import Propagation, Worklist
from bnpass.passes.search import search
from bnpass.rules import MapRefusedError, Step, quantised
from bnpass.rules.absorbers import weight

_NEW = Op("a new operator", "BatchNormalization", [], [])


class Planner:
    """Finds ways for maps to leave a graph; what has been decided stays in :attr:`committed`.

    Args:
        graph: the view.
        atoms: the composites whose constants take nothing in; none by default.

    Attributes:
        committed: the edits decided so far.
        context: what rules may ask: the graph with those edits.
        joinable: chains that wait, by their result: their operators and their map.
    """

    def __init__(self, graph: Graph, atoms: Atoms | None = None) -> None:
        self.graph = graph
        self.atoms = atoms or Atoms()
        self.committed = Committed(graph)
        self.context = GraphContext(graph, self.committed)
        self._removed = self.committed.removed
        self._past_constants = False
        self.joinable: dict[str, tuple[tuple[str, ...], Callable[[], Map]]] = {}

    # --- backward

    def backward(self, value: str, m: Map, reader: Use) -> Propagation:
        """Ask that ``value`` carry ``m``, on behalf of one of its readers.

        Raises:
            MapRefusedError: some part of the map finds no absorber.
        """
        if not m.is_finite:
            raise MapRefusedError(f"the map is not finite{at_channel(_not_finite(m))}")
        propagation = self._taken_at_once(value, m, reader)
        if propagation is not None:
            return propagation
        worklist = Worklist()
        self._ask(value, reader, m, worklist)
        return self._walk_back(worklist, Propagation())

    def _taken_at_once(self, value: str, m: Map, reader: Use) -> Propagation | None:
        """The walk of a single step, which most are: the operator in front takes all of it in."""
        op, uses = self.graph.producer(value), self.committed.uses(value)
        if op is None or len(op.outputs) != 1 or len(uses) != 1 or uses[0] != reader:
            return None
        rule = RULES.get(op.kind)
        if rule is None or op.name in self._removed or self.graph.is_output(value):
            return None
        if m.has_gaps or m.is_identity or op.name in self.atoms:
            return None
        step, *others = rule.backward(op, (m,), self.context)
        if others or step.asks:
            return None
        propagation = Propagation(asked={value: m})
        propagation.take(op, step)
        return propagation

    def place(self, value: str, m: Map, *, past_constants: bool = False) -> Propagation:
        """Could a new operator that computes ``m`` behind ``value``, for all its readers, fold?

        Args:
            value: where the operator would stand.
            m: what it would compute.
            past_constants: prefer layers to the constants of the arithmetic behind them.

        Raises:
            MapRefusedError: some part of the map finds no absorber.
        """
        worklist = Worklist(stops=frozenset([value]))
        self._ask(value, Use(_NEW, 0), m, worklist)
        self._past_constants = past_constants
        try:
            return self._walk_back(worklist, Propagation())
        finally:
            self._past_constants = False

    def _walk_back(self, worklist: Worklist, propagation: Propagation) -> Propagation:
        def steps(op: Op, worklist: Worklist, propagation: Propagation) -> list[Step]:
            asks = [self._settled(o, worklist) for o in op.outputs]
            asked = zip(op.outputs, asks, strict=True)
            propagation.asked.update((value, m) for value, m in asked if m is not None)
            found = self._step_back(op, asks)
            return found[::-1] if self._past_constants else found

        found = search(self.graph, worklist, propagation, steps, self._take_back)
        for name in found.crossed:
            self._note_unread(self.graph.ops[name], found)
        return found

    def _note_unread(self, op: Op, propagation: Propagation) -> None:
        """Parts of a Split that nobody reads change as well; other such outputs may, too."""
        values = [
            v for v in op.outputs if v and v not in propagation.asked and self.context.unread(v)
        ]
        if len(op.outputs) == 1 or not values:
            return
        m = propagation.asked.get(op.inputs[0]) if op.kind == "Split" else None
        if m is None:
            propagation.lost.update(values)
            return
        (step,) = RULES[op.kind].forward(op, {0: m}, self.context)
        parts = {op.outputs[index]: part for index, part in step.gives.items()}
        propagation.asked.update((value, parts[value]) for value in values if value in parts)

    def _step_back(self, op: Op, asks: Sequence[Map | None]) -> list[Step]:
        if asks.count(None) == len(asks):
            return [Step()]
        if op.name in self._removed:
            return [Step(asks={self._removed[op.name]: m}) for m in asks[:1] if m is not None]
        layer = self.atoms.quantised(op)
        if layer is not None:
            rest = quantised.layer_backward(op, layer.scales, asks, layer.axis, self.context)
            return self.atoms.sparing(op, rest, self.context.constant)
        rule = RULES.get(op.kind)
        if rule is None:
            raise MapRefusedError("no scale or shift can pass it", op)
        return self.atoms.sparing(op, rule.backward(op, asks, self.context), self.context.constant)

    def _take_back(self, op: Op, step: Step, worklist: Worklist, propagation: Propagation) -> None:
        propagation.take(op, step)
        for value in op.outputs:  # whoever reads them has asked by now
            worklist.asks.pop(value, None)
        for index, m in step.asks.items():
            value = op.inputs[index]
            if self.graph.constant(value) is None:
                self._ask(value, Use(op, index), m, worklist)
                continue
            m = filled(m)
            if not m.is_identity:
                weight(op, index, self.context)
                propagation.constants.append((op, index, m))

    def _ask(self, value: str, reader: Use, m: Map, worklist: Worklist) -> None:
        worklist.asks.setdefault(value, {})[reader] = m
        if m.is_identity:
            return
        producer = self.graph.producer(value)
        if producer is None:
            why = self.graph.pinned.get(value, "an input of the graph")
            raise MapRefusedError(f"{value!r} is {why}: nothing in front of it can absorb the map")
        worklist.push(producer, -self.graph.order[producer.name])

    def _settled(self, value: str, worklist: Worklist) -> Map | None:
        """What all readers of a value together ask of it; None when it stays as it is."""
        asks = worklist.asks.get(value) if value else None
        if asks is None or all(m.is_identity for m in asks.values()):
            return None
        if value in worklist.stops:
            return next(iter(asks.values()))
        if self.graph.is_output(value):
            raise MapRefusedError(f"{value!r} is an output of the graph")
        merged = merged_asks(list(asks.values()), value)
        others = [use for use in self.committed.uses(value) if use not in asks]
        if not others:
            return settle_unread(merged)
        merged = filled(merged)
        for use in others:
            self._check_blind(use, merged, value)
        return merged

    def _check_blind(self, use: Use, m: Map, value: str) -> None:
        """A reader that did not ask must not see the change (a Slice of other channels)."""
        reason = f"{value!r} is also read by {use.op.kind} {use.op.name!r}"
        row = operator(use.op.kind)
        if use.index < 0 or not (row.sees_shape or row.reads_part):
            raise MapRefusedError(reason)
        if row.sees_shape:
            return
        (step,) = RULES[use.op.kind].forward(use.op, {use.index: m}, self.context)
        if any(not given.compact().is_identity for given in step.gives.values()):
            raise MapRefusedError(reason)

    # --- forward

    def forward(self, value: str, m: Map, stops: frozenset[str] = frozenset()) -> Propagation:
        """Let every reader of ``value`` take in that it carries ``m`` no longer.

        Args:
            value: where the map stands.
            m: the map.
            stops: values at which something else will take the map (``Propagation.arrived``).

        Raises:
            MapRefusedError: some part of the map finds no absorber.
        """
        if not m.is_finite:
            raise MapRefusedError(f"the map is not finite{at_channel(_not_finite(m))}")
        worklist, propagation = Worklist(stops=stops), Propagation()
        self._give(value, m, worklist, propagation)
        return self._walk_on(worklist, propagation)

    def _walk_on(self, worklist: Worklist, propagation: Propagation) -> Propagation:
        def steps(op: Op, worklist: Worklist, propagation: Propagation) -> list[Step]:
            carried = worklist.carried
            maps = {i: carried[v] for i, v in enumerate(op.inputs) if v in carried}
            return self._step_on(op, maps, worklist, propagation)

        return search(self.graph, worklist, propagation, steps, self._take_on)

    def _step_on(
        self, op: Op, carried: dict[int, Map], worklist: Worklist, propagation: Propagation
    ) -> list[Step]:
        if op.name in self._removed:
            return [Step(gives={0: carried[self._removed[op.name]]})]
        if operator(op.kind).sees_shape:
            return [Step()]
        rule = RULES.get(op.kind)
        if rule is None:
            raise MapRefusedError("no scale or shift can pass it", op)
        try:
            steps = rule.forward(op, carried, self.context)
        except MapRefusedError:
            more = self._join(op, carried, worklist, propagation)
            if not more:
                raise
            steps = rule.forward(op, {**carried, **more}, self.context)
        return self.atoms.sparing(op, steps, self.context.constant)

    def _join(
        self, op: Op, carried: dict[int, Map], worklist: Worklist, propagation: Propagation
    ) -> dict[int, Map]:
        """Maps of other chains that end in an operator's other inputs come along."""
        waiting = {name for _, name in worklist.heap}
        found = {}
        for index, value in enumerate(op.inputs):
            if index in carried or value not in self.joinable:
                continue
            readers = {use.op.name for use in self.committed.uses(value)} - {op.name}
            if readers & (worklist.queued - waiting):
                continue  # a reader was already asked without this map
            found[index] = self.joinable[value][1]()
            self._give(value, found[index], worklist, propagation)
            propagation.joined.add(value)
        return found

    def _take_on(self, op: Op, step: Step, worklist: Worklist, propagation: Propagation) -> None:
        propagation.take(op, step)
        for index, m in step.constants.items():
            if not m.is_identity:
                _check_weight(op, index, self.context)
        for index, m in step.gives.items():
            if index < len(op.outputs) and op.outputs[index] and not m.is_identity:
                self._give(op.outputs[index], m, worklist, propagation)
        if step.gives:
            others = (o for i, o in enumerate(op.outputs) if i not in step.gives)
            propagation.lost.update(filter(None, others))

    def _give(self, value: str, m: Map, worklist: Worklist, propagation: Propagation) -> None:
        if value in worklist.stops:
            propagation.arrived[value] = m
            return
        propagation.carried[value] = m
        if self.graph.is_output(value):
            raise MapRefusedError(f"{value!r} is an output of the graph")
        for use in self.committed.uses(value):
            if use.index < 0:
                raise MapRefusedError(f"{value!r} is read inside the body of {use.op!r}")
            worklist.push(use.op, self.graph.order[use.op.name])
        worklist.carried[value] = m


def _check_weight(op: Op, index: int, context: GraphContext) -> None:
    if op.input(index):
        weight(op, index, context)


def _not_finite(m: Map) -> int | None:
    """The first channel at which a map is not."""
    found = infinite_channel(m.scale)
    return infinite_channel(m.shift) if found is None else found
