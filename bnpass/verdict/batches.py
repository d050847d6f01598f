"""A batch size that was made free: equal at the old size, row by row at others.

The plan says which values carry the batch, on which axis and with how many entries a sample. Every
node between two such values is a region of its own, with the arithmetic of sizes that leads to it.
The old graph computes blocks of its own size, the new one several sizes; what the new one makes has
to be the samples of the blocks, one behind the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from bnpass.errors import BnpassError, InputError, UnsupportedError
from bnpass.ir.correspondence import Correspondences
from bnpass.passes.free_batch.node import Batch
from bnpass.verdict.evaluator import UnknownOperatorError
from bnpass.verdict.findings import Proof, ProofReport
from bnpass.verdict.region_judge import difference_of
from bnpass.verdict.region_run import RegionRun
from bnpass.verdict.regions import Cutter, Region
from bnpass.verdict.sample_wise import is_sample_wise, same_text
from bnpass.verdict.samples import SampleSizes, draw
from bnpass.verdict.side import Array, Side

ROUNDING = 1e-11
"""What float64 may lose in sums of another order, of the largest magnitude."""

_MOST = 1 << 24  # numbers that a region may read

_LARGE, _AXIS = 1 << 16, 9  # from so many on axes longer than this are first tried shorter

_SMALL = 64  # entries of a constant that counts by its numbers when regions are alike

_STEPS = 3  # of a recurrent layer

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True)
class BatchProof(Proof):
    """What became of one region.

    Attributes:
        samples: how many there were where the new graph made something else.
    """

    samples: int = 0


def prove_batch(
    old: Side, new: Side, values: Mapping[str, Batch], size: int, *, seed: int = 0
) -> ProofReport:
    """Prove a freed batch node by node.

    Args:
        old: the main graph of the original, whose batch size is fixed.
        new: that of the result.
        values: by name, where values of the old graph carry the batch: a claim, that makes a
            region fail where it is wrong.
        size: the old batch size.
        seed: of the inputs.
    """
    start = time.perf_counter()
    report = ProofReport()
    for found in _Batches(old, new, values, size, seed).proofs():
        report.enter(found)
    report.seconds = time.perf_counter() - start
    return report


class _Batches:
    """Proves the regions of one pair of graphs."""

    def __init__(
        self, old: Side, new: Side, values: Mapping[str, Batch], size: int, seed: int
    ) -> None:
        self.old, self.new, self.values, self.size, self.seed = old, new, values, size, seed
        without = frozenset(n for n in old.producers if n not in values)
        self.cutter = Cutter(old, new, Correspondences({}, without), same_text)
        self.blocks = 3 if size == 1 else 2
        self.sizes = sorted({1, size, size + 1, self.blocks * size})

    def proofs(self) -> Iterator[Proof]:
        """One a region; regions of one form are evaluated once."""
        known: dict[Hashable, BatchProof] = {}
        for value, index in self.old.producers.items():
            if value not in self.values:
                continue
            if value not in self.cutter.found:
                name = self.old.names([index])
                yield BatchProof((*name,), (), value, np.inf, np.inf, samples=self.size)
                continue
            if is_sample_wise(self.old, self.new, value, self.values):
                continue
            region = self._region(value)
            form = self._form(region)
            if form is None or form not in known:
                found = self._prove(region)
                if form is not None:
                    known[form] = found
                yield found
            else:
                about = self._about(region)
                yield replace(known[form], nodes=about.nodes, into=about.into, value=about.value)

    def _region(self, value: str) -> Region:
        """What makes a value, back to values whose shapes are known."""
        while True:
            region = self.cutter.region(self.cutter.found[value])
            read = [p.old for p in region.cut if p.old in self.old.producers]
            unknown = [name for name in read if self.old.shape(name) is None]
            if not unknown:
                return region
            for name in unknown:
                self.cutter.drop(name)

    def _about(self, region: Region) -> BatchProof:
        nodes, into = self.old.names(region.old_nodes), self.new.names(region.new_nodes)
        return BatchProof(tuple(nodes), tuple(into), region.target.old)

    def _prove(self, region: Region) -> BatchProof:
        about, last = self._about(region), ""
        for sizes in _sizes(self, region):
            try:
                found = self._judged(region, about, sizes)
            except (BnpassError, ValueError) as error:
                last = str(error)
                continue
            if found.passed or sizes.full:
                return found
        return replace(about, reason=last or "it cannot be evaluated")

    def _judged(self, region: Region, about: BatchProof, sizes: _BatchSizes) -> BatchProof:
        rng = np.random.default_rng([self.seed, *region.old_nodes[:4]])
        if sizes.count() > _MOST:
            raise UnknownOperatorError(f"it reads {sizes.count():,} numbers, too many to try")
        drawn = draw(self.old, region, sizes, rng, 1)
        if drawn is None:
            raise UnknownOperatorError("the shape of what it reads is not known")
        given, target = drawn[0], region.target.old
        size = self.size
        blocks = [
            RegionRun(
                self.old, region.old_nodes, self._part(given, k * size, (k + 1) * size)
            ).value(target)
            for k in range(self.blocks)
        ]
        batch = self.values[target]
        if any(not _fits(block, batch, size) for block in blocks):
            return replace(about, ratio=np.inf, difference=np.inf, samples=size)
        whole = np.concatenate(blocks, axis=batch.axis)
        worst = about
        for count in self.sizes:
            found = self._at(region, about, given, whole, count)
            if found.ratio > worst.ratio:
                worst = found
        return worst

    def _at(
        self,
        region: Region,
        about: BatchProof,
        given: Mapping[str, Array],
        whole: Array,
        count: int,
    ) -> BatchProof:
        """The new graph on the first samples, against what the blocks say of them."""
        target = region.target.new
        wanted = _slice(whole, self.values[region.target.old], 0, count)
        wrong = replace(about, ratio=np.inf, difference=np.inf, samples=count)
        try:
            run = RegionRun(self.new, region.new_nodes, self._part(given, 0, count))
            made = run.value(target)
        except UnsupportedError:
            raise
        except InputError:  # the old one could: it is what was changed
            return wrong
        if made.shape != wanted.shape:
            return wrong
        if not made.size:
            raise UnknownOperatorError(f"{target!r} is empty at the sizes that were tried")
        if made.dtype.kind != "f":
            return wrong if (made != wanted).any() else about
        difference = difference_of(wanted, made)
        finite = np.abs(wanted[np.isfinite(wanted)])
        unit = ROUNDING * max(float(finite.max(initial=0.0)), 1e-30)
        worst = float(difference.max())
        return replace(about, ratio=worst / unit, difference=worst, samples=count)

    def _part(self, given: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
        """Samples from ``start`` on; what does not carry the batch is the same for all."""
        return {
            name: _slice(array, self.values[name], start, stop) if name in self.values else array
            for name, array in given.items()
        }

    def _form(self, region: Region) -> Hashable | None:
        """What regions have in common that are right or wrong alike; None where that is open."""
        places: dict[str, int] = {}
        cut = []
        for pair in region.cut:
            places[pair.old] = len(places)
            kind = self.old.element(pair.old), self.old.shape(pair.old)
            cut.append((*kind, self.values.get(pair.old)))
        parts: list[Hashable] = [tuple(cut), self.values[region.target.old]]
        for side, nodes in ((self.old, region.old_nodes), (self.new, region.new_nodes)):
            inner = dict(places)
            for index in nodes:
                node = side.graph.node[index]
                if any(a.HasField("g") or a.graphs for a in node.attribute):
                    return None
                reads = tuple(self._operand(side, inner, name) for name in node.input)
                for name in node.output:
                    inner.setdefault(name, len(inner))
                texts = tuple(sorted(a.SerializeToString() for a in node.attribute))
                parts.append((node.domain, node.op_type, texts, reads, len(node.output)))
            parts.append(inner.get(region.target.old))
        return tuple(parts)

    def _operand(self, side: Side, inner: Mapping[str, int], name: str) -> Hashable:
        if name in inner or not name:
            return inner.get(name, -1)
        tensor = side.tensor(name)
        if tensor is None:
            return name
        dims = tuple(tensor.dims)
        if math.prod(dims) <= _SMALL:
            return tensor.data_type, dims, np.asarray(side.whole.view(tensor)).tobytes()
        both = self.old.tensor(name) is not None and self.new.tensor(name) is not None
        return tensor.data_type, dims, "" if both and tensor.data_type == 1 else name


def _fits(block: Array, batch: Batch, size: int) -> bool:
    """Whether a value carries so many samples as is said."""
    return batch.axis < block.ndim and block.shape[batch.axis] == batch.factor * size


def _slice(array: Array, batch: Batch, start: int, stop: int) -> Array:
    """Samples of a value."""
    part = slice(start * batch.factor, stop * batch.factor)
    return array[(*([slice(None)] * batch.axis), part)]


class _BatchSizes(SampleSizes):
    """The shapes that a region's inputs get, with several blocks of samples along the batch.

    Args:
        batches, region: whose inputs.
        shrink: as few places as tell everything, where all operators are local.
        most: entries of an axis that is shortened; 0: none is.
    """

    def __init__(
        self, batches: _Batches, region: Region, shrink: bool = False, most: int = 0
    ) -> None:
        super().__init__(batches.old, region, shrink)
        self.most, self.full = most, not (self.local or most)
        self.values, self.samples = batches.values, batches.blocks * batches.size
        self.cut = region.cut
        nodes = [self.old.graph.node[i] for i in region.old_nodes]
        self.steps = {
            node.input[0]: 1 if any(a.name == "layout" and a.i for a in node.attribute) else 0
            for node in nodes
            if len(nodes) == 1 and node.op_type in _RECURRENT and not any(node.input[4:5])
        }

    def of(self, name: str) -> tuple[int, ...] | None:
        """The shape of one input; None where not even its rank is known."""
        known, batch = super().of(name), self.values.get(name)
        if known is None:
            return None
        shape = [s if not 0 < self.most < s else 2 + s % (self.most - 1) for s in known]
        if name in self.steps:
            shape[self.steps[name]] = min(_STEPS, shape[self.steps[name]])
        if batch is not None:
            if batch.axis >= len(shape):
                return None
            shape[batch.axis] = batch.factor * self.samples
        return tuple(shape)

    def count(self) -> int:
        """How many numbers are read."""
        return sum(math.prod(self.of(pair.old) or ()) for pair in self.cut)


def _sizes(batches: _Batches, region: Region) -> Iterator[_BatchSizes]:
    """What to try: few places, then small axes (sizes that are equal stay so), then the model's."""
    local, full = _BatchSizes(batches, region, True), _BatchSizes(batches, region)
    if local.local:
        yield local
    if full.count() > _LARGE:
        yield _BatchSizes(batches, region, most=_AXIS)
    yield full
