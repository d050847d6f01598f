"""Question 1: is every edit right? Each is proven on its own region, in float64.

What is caught: every edit whose effect on some entry is more than :data:`FACTOR` times what
rounding the region's new weights explains. Measured: right folds stay within 2 times, a single
median weight that is off by one part in a thousand in a layer of 25,088 inputs is at 70 times.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from bnpass.errors import BnpassError
from bnpass.ir.correspondence import Correspondences
from bnpass.onnx_model.attributes import is_onnx
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import Place, has_bodies
from bnpass.verdict.bounds import LINEAR, pooled, unit_roundoff, worst_ratio
from bnpass.verdict.coefficients import Coefficients, LayerForm, LayerForms
from bnpass.verdict.evaluator import UnknownOperatorError
from bnpass.verdict.naming import matched
from bnpass.verdict.region_run import RegionRun, Stepped
from bnpass.verdict.regions import Cutter, Region
from bnpass.verdict.samples import SampleSizes, draw, fitted, floats, turns
from bnpass.verdict.side import Array, Side, sides_of
from bnpass.verdict.stacked import Forms, Stack, chunks

log = logging.getLogger("bnpass.verdict")

FACTOR = 6.0
"""How many times the rounding of the new weights an entry may be off."""

MEASURED_FACTOR = 24.0
"""The same where the rounding is not bounded but measured by moving the weights at random."""

UNTOUCHED = Correspondences()
"""Nothing is said: names tell which value stands for which."""

_MOVES = 4

_FEW = 4  # regions of one form from which on they are evaluated together


@dataclass(frozen=True)
class Proof:
    """What became of one region.

    Attributes:
        nodes: the original's nodes in it.
        into: the result's nodes in it.
        value: the original's value that it makes.
        ratio: the largest difference, in units of what rounding explains.
        difference: that difference.
        channel: the place along the second axis where it is; None for a vector.
        limit: what the ratio may be.
        reason: why the region could not be evaluated; empty if it was.
    """

    nodes: tuple[str, ...]
    into: tuple[str, ...]
    value: str
    ratio: float = 0.0
    difference: float = 0.0
    channel: int | None = None
    limit: float = FACTOR
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was evaluated, and is right."""
        return not self.reason and self.ratio <= self.limit

    @property
    def node(self) -> str:
        """The node to name: the last that both have, else of the result's, else the original's."""
        both = [name for name in self.into if name in self.nodes]
        return (both or self.into or self.nodes or (self.value,))[-1]


@dataclass
class ProofReport:
    """The answer to question 1.

    Attributes:
        passed: no region is wrong.
        proven: how many regions were found right.
        failures: those that are wrong.
        open: those that could not be evaluated: they fall to question 2.
        worst: the largest ratio among the right ones.
        seconds: wall clock.
    """

    passed: bool = True
    proven: int = 0
    failures: list[Proof] = field(default_factory=list)
    open: list[Proof] = field(default_factory=list)
    worst: float = 0.0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        found = asdict(self)
        found["seconds"] = round(self.seconds, 3)
        return found


def prove(
    old: OnnxModel,
    new: OnnxModel,
    pairs: Mapping[Place, Correspondences] | Correspondences = UNTOUCHED,
    *,
    seed: int = 0,
) -> ProofReport:
    """Prove a rewritten model edit by edit.

    Args:
        old: the original.
        new: the result.
        pairs: which new value stands for which old one, by graph (or of the main graph alone);
            what is not mentioned has to be the same numbers under the same name. A wrong claim
            makes a region fail, it cannot make one pass.
        seed: of the inputs.
    """
    start = time.perf_counter()
    by_place: dict[Place, Correspondences] = {}
    by_place.update({(): pairs} if isinstance(pairs, Correspondences) else pairs)
    report = ProofReport()
    sides = sides_of(new)
    for place, side in sides_of(old).items():
        other = sides.get(place)
        if other is None:
            continue  # the node around it is evaluated as a whole
        claims = by_place.get(place, UNTOUCHED)
        prover = _Prover(side, other, claims, sides.keys(), seed)
        for found in prover.proofs():
            _enter(report, found)
    report.passed = not report.failures
    report.seconds = time.perf_counter() - start
    return report


def _enter(report: ProofReport, found: Proof) -> None:
    if found.reason:
        report.open.append(found)
    elif found.passed:
        report.proven += 1
        report.worst = max(report.worst, found.ratio / found.limit)
    else:
        report.failures.append(found)


class _Prover:
    """Proves the regions of one pair of graphs."""

    def __init__(
        self, old: Side, new: Side, pairs: Correspondences, places: Iterable[Place], seed: int
    ) -> None:
        self.old, self.new, self.seed = old, new, seed
        self.places = set(places)
        self.by_name = pairs is UNTOUCHED
        if self.by_name:
            pairs = matched(old, new)
        self.cutter = Cutter(old, new, pairs, self._same)

    def _same(self, one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
        """Whether two nodes are the same operator; bodies are proven for themselves."""
        if (one.op_type, one.domain) != (other.op_type, other.domain):
            return False
        if has_bodies(one) and next(iter(one.output), "") != next(iter(other.output), ""):
            return False
        name = (one.domain, one.op_type)
        ours, theirs = (s.whole.functions.get(name) for s in (self.old, self.new))
        if ours is not theirs and (ours is None or theirs is None or ours != theirs):
            return False
        return _attributes(one) == _attributes(other)

    def proofs(self) -> Iterable[Proof]:
        """One a region, and one for every output that is not there any more."""
        for value in self.cutter.missing_outputs():
            yield Proof((), (), self.old.path + value, np.inf, np.inf)
        wrong: dict[str, tuple[Region, Proof]] = {}
        readers: dict[str, list[Region]] = {}
        for region, found in self._all(list(self.cutter.regions())):
            for pair in region.cut:
                readers.setdefault(pair.old, []).append(region)
            if found.passed:
                yield found
            else:
                wrong[region.target.old] = region, found
        while wrong:
            region, found = wrong.pop(min(wrong, key=self.cutter.height))
            yield from self._without(region, found, readers, wrong)

    def _all(self, regions: list[Region]) -> Iterable[tuple[Region, Proof]]:
        """Every region with its proof; those of one form together."""
        forms, linear = Forms(self.old, self.new), LayerForms(self.old, self.new)
        groups: dict[Hashable, list[Region]] = {}
        alike: dict[LayerForm, list[Region]] = {}
        for region in regions:
            layer = linear.of(region)
            if layer is not None:
                alike.setdefault(layer, []).append(region)
                continue
            form = forms.of(region)
            if form is None:
                yield region, self.prove(region)
            else:
                groups.setdefault(form, []).append(region)
        for layer, group in alike.items():
            yield from self._by_coefficients(group, layer)
        for group in groups.values():
            if len(group) < _FEW:
                yield from ((region, self.prove(region)) for region in group)
            else:
                yield from self._together(group)

    def _by_coefficients(
        self, group: list[Region], form: LayerForm
    ) -> Iterable[tuple[Region, Proof]]:
        found = Coefficients(self.old, self.new, group, form.rank).compare()
        for region, one in zip(group, found, strict=True):
            about = self._about(region)
            judged = _replaced(about, one.ratio, one.difference, one.channel, FACTOR)
            if not judged.passed:  # what it does to a value says more than a coefficient
                alone = self.prove(region)
                judged = judged if alone.passed or alone.reason else alone
            yield region, judged

    def _about(self, region: Region) -> Proof:
        nodes, into = self.old.names(region.old_nodes), self.new.names(region.new_nodes)
        return Proof(tuple(nodes), tuple(into), self.old.path + region.target.old)

    def _together(self, group: list[Region]) -> Iterable[tuple[Region, Proof]]:
        first = group[0]
        sizes = SampleSizes(self.old, first, True)
        rng = np.random.default_rng([self.seed, len(group)])
        numbers = []
        for pair in first.cut:
            shape = sizes.of(pair.old)
            assert shape is not None
            numbers.append(floats(fitted(pair, shape), rng, 0))
        for part in chunks(first, self.new, numbers, len(group)):
            stack = Stack(self.old, self.new, group[part])
            try:
                left, right, squares = stack.run(numbers)
            except (ValueError, BnpassError):  # not on these sizes
                yield from ((region, self.prove(region)) for region in group[part])
                continue
            floor = 1e-12 * np.abs(right).max(initial=0.0)
            bound = unit_roundoff(stack.kinds) * np.sqrt(squares) + floor
            yield from self._each(group[part], _difference(left, right), bound)

    def _each(
        self, group: list[Region], difference: Array, bound: Array
    ) -> Iterable[tuple[Region, Proof]]:
        count = len(group)
        full = np.broadcast_shapes(difference.shape, bound.shape, (count, *difference.shape[1:]))
        difference = np.broadcast_to(difference, full)
        with np.errstate(all="ignore"):
            ratios = np.where(difference == 0, 0.0, difference / np.broadcast_to(bound, full))
        ratios = np.where(np.isnan(ratios), np.inf, ratios).reshape(count, -1)
        worst = ratios.argmax(1)
        for k, region in enumerate(group):
            ratio = float(ratios[k, worst[k]])
            if ratio > FACTOR:
                yield region, self.prove(region)  # alone, for all that is to be said of it
                continue
            size = float(difference[k].reshape(-1)[worst[k]])
            yield region, _replaced(self._about(region), ratio, size, None, FACTOR)

    def _without(
        self,
        region: Region,
        found: Proof,
        readers: Mapping[str, list[Region]],
        wrong: dict[str, tuple[Region, Proof]],
    ) -> list[Proof]:
        """What is left of a failure once its claim is taken back.

        A claim may be wrong where the edit is right (a value that nobody said has changed): then
        the regions behind it are right as soon as they reach through the value.
        """
        value = region.target.old
        targets = [r.target for r in readers.get(value, ())]
        targets += self.cutter.made_from(value)
        behind = {t.old: t for t in targets if t.old in self.cutter.found}
        if not behind or value in self.old.outputs or value not in self.cutter.found:
            return [found]
        self.cutter.drop(value)
        regions = [self.cutter.region(target) for target in behind.values()]
        again = [self.prove(r) for r in regions]
        tells = all(p.passed for p in again) and all(self._linear(r) for r in regions)
        if not self.by_name and not tells:
            return [found]
        for r, p in zip(regions, again, strict=True):
            wrong.pop(r.target.old, None)
            if not (p.passed or p.reason):  # the claim was a guess: it is not to blame
                wrong[r.target.old] = r, p
        return [p for p in again if p.passed or p.reason]

    def _linear(self, region: Region) -> bool:
        """Whether a mistake inside shows outside: behind a Tanh or a Relu it can be hidden."""
        nodes = [self.old.graph.node[i] for i in region.old_nodes]
        nodes += [self.new.graph.node[i] for i in region.new_nodes]
        return all(is_onnx(node, *LINEAR) for node in nodes)

    def prove(self, region: Region) -> Proof:
        """Evaluate a region on both sides and compare."""
        about, reasons = self._about(region), []
        for shrink in (True, False):
            try:
                return self._judged(region, about, SampleSizes(self.old, region, shrink))
            except BnpassError as error:
                reasons.append(error.message)
        return replace(about, reason=reasons[-1])

    def _judged(self, region: Region, about: Proof, sizes: SampleSizes) -> Proof:
        worst = about
        for turn in range(turns(self.old, region, sizes)):
            rng = np.random.default_rng([self.seed, turn, *region.old_nodes[:4]])
            drawn = draw(self.old, region, sizes, rng, turn)
            if drawn is None:
                raise UnknownOperatorError("the shape of what it reads is not known")
            found = self._compared(region, about, *drawn, rng)
            if found.ratio / found.limit >= worst.ratio / worst.limit:
                worst = found
        return worst

    def _compared(
        self,
        region: Region,
        about: Proof,
        given: dict[str, Array],
        given_new: dict[str, Array],
        rng: np.random.Generator,
    ) -> Proof:
        target = region.target
        old = RegionRun(self.old, region.old_nodes, given).value(target.old)
        run = RegionRun(self.new, region.new_nodes, given_new)
        new = run.value(target.new)
        if old.shape != new.shape:
            return _replaced(about, np.inf, np.inf, None, FACTOR)
        if old.dtype.kind != "f":
            wrong = old != new
            return _replaced(about, np.inf if wrong.any() else 0.0, float(wrong.sum()), None, 1.0)
        left, right = target.of_old(old), target.of_new(new)
        bound, limit = self._bound(region, run, new, given_new, rng)
        if target.new_map is not None:
            # the map may be of constants that the file computes, in its own type
            unit = unit_roundoff(run.kinds)
            bound = np.abs(target.new_map.scale) * bound + unit * np.abs(target.new_map.shift)
        if target.old_map is None and self._computes_constants(region):
            bound = np.hypot(bound, self._old_rounding(region, given, run))
        difference = _difference(left, right)
        bound = np.broadcast_to(bound, difference.shape)
        if not difference.size:
            raise UnknownOperatorError(f"{target.old!r} is empty at the sizes that were tried")
        ratio, place = worst_ratio(difference, bound)
        at = np.unravel_index(place, difference.shape)
        channel = int(at[1]) if len(at) > 1 else None
        return _replaced(about, ratio, float(difference.reshape(-1)[place]), channel, limit)

    def _computes_constants(self, region: Region) -> bool:
        """Whether the old nodes read constants that are computed, and rounded, step by step."""
        names = {n for i in region.old_nodes for n in self.old.graph.node[i].input if n}
        found = (self.old.constant_node(name) for name in names if self.old.is_constant(name))
        return any(node is not None and not is_onnx(node, "Constant") for node in found)

    def _old_rounding(self, region: Region, given: dict[str, Array], run: RegionRun) -> Array:
        """What rounding such steps explains: the file's own arithmetic is no better."""
        values = {n: np.square(a) if a.dtype.kind == "f" else a for n, a in given.items()}
        try:
            old = RegionRun(self.old, region.old_nodes, values, squares=True)
            return unit_roundoff(run.kinds) * np.sqrt(old.value(region.target.old))
        except UnknownOperatorError:
            return np.zeros(())

    def _bound(
        self,
        region: Region,
        run: RegionRun,
        new: Array,
        given: dict[str, Array],
        rng: np.random.Generator,
    ) -> tuple[Array, float]:
        """(what rounding explains at every entry, how many times that is allowed)."""
        unit = unit_roundoff(run.kinds)
        floor = 1e-12 * np.max(np.abs(new), initial=0.0) * np.ones(())
        try:
            values = {name: np.square(array) if array.dtype.kind == "f" else array
                      for name, array in given.items()}  # fmt: skip
            stepped = Stepped(self.old, self.new, FACTOR * unit)
            squares = RegionRun(
                self.new, region.new_nodes, values, squares=True, stepped=stepped
            ).value(region.target.new)
            return unit * np.sqrt(squares + np.square(new)) + floor, FACTOR
        except UnknownOperatorError:
            moves = []
            for _ in range(_MOVES):
                moved = RegionRun(self.new, region.new_nodes, given, move=(unit, rng))
                moves.append(moved.value(region.target.new) - new)
            axis = next(iter(region.target.axes), 1)
            return pooled(moves, axis) + unit * np.abs(new) + floor, MEASURED_FACTOR


def _replaced(
    about: Proof, ratio: float, difference: float, channel: int | None, limit: float
) -> Proof:
    return Proof(about.nodes, about.into, about.value, ratio, difference, channel, limit)


def _difference(left: Array, right: Array) -> Array:
    """|left - right|; infinite where one is not finite and the other is not the same."""
    with np.errstate(all="ignore"):
        found = np.abs(left - right)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    return np.where(same, 0.0, np.where(np.isnan(found), np.inf, found))


def _attributes(node: onnx.NodeProto) -> list[bytes]:
    """The attributes but for nested graphs, in a form that compares."""
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return sorted(a.SerializeToString() for a in node.attribute if a.type not in graphs)
