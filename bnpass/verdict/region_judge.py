"""One region alone: evaluated on both sides, and held against what rounding explains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnpass.errors import BnpassError
from bnpass.onnx_model.attributes import is_onnx
from bnpass.verdict.bounds import pooled, unit_roundoff, worst_ratio
from bnpass.verdict.evaluator import UnknownOperatorError
from bnpass.verdict.findings import FACTOR, MEASURED_FACTOR, Proof
from bnpass.verdict.region_run import RegionRun, Stepped
from bnpass.verdict.regions import Region
from bnpass.verdict.samples import SampleSizes, draw, turns
from bnpass.verdict.side import Array, Side

_MOVES = 4


class RegionJudge:
    """Proves regions of one pair of graphs, each by itself.

    Args:
        old, new: the graphs.
        seed: of the inputs.
    """

    def __init__(self, old: Side, new: Side, seed: int) -> None:
        self.old, self.new, self.seed = old, new, seed

    def about(self, region: Region) -> Proof:
        """What a report names of a region."""
        nodes, into = self.old.names(region.old_nodes), self.new.names(region.new_nodes)
        return Proof(tuple(nodes), tuple(into), self.old.path + region.target.old)

    def prove(self, region: Region) -> Proof:
        """Evaluate a region on both sides and compare."""
        about, reasons = self.about(region), []
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
            return outcome(about, np.inf, np.inf, None, FACTOR)
        if old.dtype.kind != "f":
            wrong = old != new
            return outcome(about, np.inf if wrong.any() else 0.0, float(wrong.sum()), None, 1.0)
        left, right = target.of_old(old), target.of_new(new)
        bound, limit = self._bound(region, run, new, given_new, rng)
        if target.new_map is not None:
            # the map may be of constants that the file computes, in its own type
            unit = unit_roundoff(run.kinds)
            bound = np.abs(target.new_map.scale) * bound + unit * np.abs(target.new_map.shift)
        if target.old_map is None and self._computes_constants(region):
            bound = np.hypot(bound, self._old_rounding(region, given, run))
        difference = difference_of(left, right)
        bound = np.broadcast_to(bound, difference.shape)
        if not difference.size:
            raise UnknownOperatorError(f"{target.old!r} is empty at the sizes that were tried")
        ratio, place = worst_ratio(difference, bound)
        at = np.unravel_index(place, difference.shape)
        channel = int(at[1]) if len(at) > 1 else None
        return outcome(about, ratio, float(difference.reshape(-1)[place]), channel, limit)

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


def outcome(
    about: Proof, ratio: float, difference: float, channel: int | None, limit: float
) -> Proof:
    """The same region with what became of it."""
    return Proof(about.nodes, about.into, about.value, ratio, difference, channel, limit)


def difference_of(left: Array, right: Array) -> Array:
    """|left - right|; infinite where one is not finite and the other is not the same."""
    with np.errstate(all="ignore"):
        found = np.abs(left - right)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    return np.where(same, 0.0, np.where(np.isnan(found), np.inf, found))
