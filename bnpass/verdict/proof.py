"""Question 1: is every edit right? Each is proven on its own region, in float64.

What is caught: every edit whose effect on some entry is more than ``FACTOR`` times what
rounding the region's new weights explains. Measured: right folds stay within 2 times, a single
median weight that is off by one part in a thousand in a layer of 25,088 inputs is at 70 times.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import onnx

from bnpass.errors import BnpassError
from bnpass.ir.correspondence import Correspondences
from bnpass.onnx_model.attributes import is_onnx
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import Place, has_bodies
from bnpass.verdict.bounds import LINEAR, unit_roundoff
from bnpass.verdict.coefficients import Coefficients, LayerForm, LayerForms
from bnpass.verdict.findings import FACTOR, Proof, ProofReport
from bnpass.verdict.naming import matched
from bnpass.verdict.region_judge import RegionJudge, difference_of, outcome
from bnpass.verdict.regions import Cutter, Region
from bnpass.verdict.samples import SampleSizes, fitted, floats
from bnpass.verdict.side import Array, Side, sides_of
from bnpass.verdict.stacked import Forms, Stack, chunks

UNTOUCHED = Correspondences()
"""Nothing is said: names tell which value stands for which."""

_FEW = 4  # regions of one form from which on they are evaluated together


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
            report.enter(found)
    report.seconds = time.perf_counter() - start
    return report


class _Prover:
    """Proves the regions of one pair of graphs."""

    def __init__(
        self, old: Side, new: Side, pairs: Correspondences, places: Iterable[Place], seed: int
    ) -> None:
        self.old, self.new, self.seed = old, new, seed
        self.judge = RegionJudge(old, new, seed)
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
                yield region, self.judge.prove(region)
            else:
                groups.setdefault(form, []).append(region)
        for layer, group in alike.items():
            yield from self._by_coefficients(group, layer)
        for group in groups.values():
            if len(group) < _FEW:
                yield from ((region, self.judge.prove(region)) for region in group)
            else:
                yield from self._together(group)

    def _by_coefficients(
        self, group: list[Region], form: LayerForm
    ) -> Iterable[tuple[Region, Proof]]:
        found = Coefficients(self.old, self.new, group, form.rank).compare()
        for region, one in zip(group, found, strict=True):
            about = self.judge.about(region)
            judged = outcome(about, one.ratio, one.difference, one.channel, FACTOR)
            if not judged.passed:  # what it does to a value says more than a coefficient
                alone = self.judge.prove(region)
                judged = judged if alone.passed or alone.reason else alone
            yield region, judged

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
                yield from ((region, self.judge.prove(region)) for region in group[part])
                continue
            floor = 1e-12 * np.abs(right).max(initial=0.0)
            bound = unit_roundoff(stack.kinds) * np.sqrt(squares) + floor
            yield from self._each(group[part], difference_of(left, right), bound)

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
                yield region, self.judge.prove(region)  # alone, for all that is to be said of it
                continue
            size = float(difference[k].reshape(-1)[worst[k]])
            yield region, outcome(self.judge.about(region), ratio, size, None, FACTOR)

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
        again = [self.judge.prove(r) for r in regions]
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

def _attributes(node: onnx.NodeProto) -> list[bytes]:
    """The attributes but for nested graphs, in a form that compares."""
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return sorted(a.SerializeToString() for a in node.attribute if a.type not in graphs)
