"""Regions: for each value that an edit touches, the smallest part of both graphs that makes it.

A region reaches back from a pair of corresponding values to values that correspond themselves. Its
inputs are free numbers that meet the correspondences; if it then makes a pair that meets its own,
and every region does, the whole graphs compute the same: whoever claims the correspondences, and
however wrong the claim, a region catches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from bnpass.ir.correspondence import Correspondence, Correspondences
from bnpass.onnx_model.scopes import has_bodies
from bnpass.verdict.side import Side

_MOST = 400  # nodes of a region: a cut that reaches further has lost its way


@dataclass
class Region:
    """A part of the old graph and the part of the new one that stands for it.

    Attributes:
        target: the pair of values that both make.
        cut: the pairs that both start from.
        old_nodes, new_nodes: indices of nodes, in order.
    """

    target: Correspondence
    cut: list[Correspondence]
    old_nodes: list[int]
    new_nodes: list[int]


class Cutter:
    """Cuts a pair of graphs into regions.

    Args:
        old, new: the graphs.
        pairs: what is claimed to correspond.
        same: whether a node of the old graph and one of the new compute the same by their text.
    """

    def __init__(
        self,
        old: Side,
        new: Side,
        pairs: Correspondences,
        same: Callable[[onnx.NodeProto, onnx.NodeProto], bool],
    ) -> None:
        self.old, self.new, self.pairs, self.same = old, new, pairs, same
        values = [*old.inputs, *(n for node in old.graph.node for n in node.output if n)]
        self._readers: dict[str, list[str]] | None = None
        self.found: dict[str, Correspondence] = {}
        self.by_new: dict[str, list[Correspondence]] = {}
        for value in values:
            pair = pairs.of(value)
            if pair is None or old.is_constant(value) or not self._is_there(pair.new):
                continue
            self.found[value] = pair
            self.by_new.setdefault(pair.new, []).append(pair)
        self._merge()

    def _merge(self) -> None:
        """Let regions reach through a mapped value whose own map is all that lies behind it.

        A layer's value that only its BatchNormalization reads, whose place it takes: one region of
        both says as much as two, and believes no map.
        """
        shared = [pairs for pairs in self.by_new.values() if len(pairs) > 1]
        if not shared:
            return
        readers: dict[str, list[int]] = {}
        for index in range(len(self.old.graph.node)):
            for name in self.old.read_by(index):
                readers.setdefault(name, []).append(index)
        for pairs in shared:
            ends = {p.old for p in pairs if is_plain(p)}
            for pair in sorted(pairs, key=lambda p: -self.height(p.old)):
                read = readers.get(pair.old, ())
                if is_plain(pair) or len(read) != 1 or pair.old in self.old.outputs:
                    continue
                if not ends.isdisjoint(self.old.graph.node[read[0]].output):
                    ends.add(pair.old)
                    self.drop(pair.old)

    def _is_there(self, name: str) -> bool:
        return name in self.new.producers or name in self.new.inputs

    def drop(self, value: str) -> None:
        """Take a claim back: regions reach through that value from now on."""
        pair = self.found.pop(value)
        self.by_new[pair.new].remove(pair)

    def made_from(self, value: str) -> list[Correspondence]:
        """The pairs that the readers of an old value make."""
        if self._readers is None:
            self._readers = {}
            for node in self.old.graph.node:
                for name in self.old.reads(node):
                    self._readers.setdefault(name, []).extend(filter(None, node.output))
        made = self._readers.get(value, ())
        return [self.found[name] for name in made if name in self.found]

    def missing_outputs(self) -> list[str]:
        """Outputs of the old graph that the new one does not have as they were."""
        missing = []
        for value, other in zip(self.old.outputs, self.new.outputs, strict=False):
            pair = self.found.get(value)
            constant = self.old.is_constant(value) and self.new.is_constant(other)
            if constant or (self.old.free(value) and value == other):
                continue
            if pair is None or pair.new != other or not is_plain(pair):
                missing.append(value)
        return missing + self.old.outputs[len(self.new.outputs) :]

    def regions(self) -> Iterator[Region]:
        """Every region in which the two graphs do not read the same."""
        done: set[tuple[int | None, int | None]] = set()
        for value, pair in self.found.items():
            a, b = self.old.producers.get(value), self.new.producers.get(pair.new)
            if a is None and b is None:
                continue  # an input of both
            both = a is not None and b is not None and is_plain(pair)
            if both and ((a, b) in done or self._alike(a, b)):
                done.add((a, b))
                continue
            yield self.region(pair)
        for value, other in zip(self.old.outputs, self.new.outputs, strict=False):
            if self.old.is_constant(value) and self.new.is_constant(other):
                pair = Correspondence(value, other)
                a, b = self.old.producers.get(value), self.new.producers.get(other)
                if not self._alike(a, b):
                    yield self.region(pair)

    def _alike(self, a: int | None, b: int | None) -> bool:
        """Whether two nodes are the same operator on the same operands."""
        if a is None or b is None:
            return False
        one, other = self.old.graph.node[a], self.new.graph.node[b]
        if len(one.input) != len(other.input) or not self.same(one, other):
            return False
        return all(map(self._same_operand, one.input, other.input)) and self._same_captured(one)

    def _same_operand(self, name: str, other: str) -> bool:
        if not name or not other:
            return name == other
        if self.old.is_constant(name):
            return self.new.is_constant(other) and self._same_constant(name, other)
        if self.old.free(name):
            pair = self.found.get(name)
            return name == other and (pair is None or is_plain(pair))
        pair = self.found.get(name)
        return pair is not None and pair.new == other and is_plain(pair)

    def _same_captured(self, node: onnx.NodeProto) -> bool:
        if not has_bodies(node):
            return True
        inside = set(self.old.reads(node)) - set(node.input)
        return all(self._same_operand(name, name) for name in inside)

    def _same_constant(self, name: str, other: str) -> bool:
        a, b = self.old.tensor(name), self.new.tensor(other)
        if a is not None and b is not None:
            return same_tensor(self.old, a, self.new, b)
        if a is not None or b is not None:
            return False
        one, two = self.old.constant_node(name), self.new.constant_node(other)
        if one is None or two is None or not self.same(one, two):
            return False
        if list(one.output).index(name) != list(two.output).index(other):
            return False
        return len(one.input) == len(two.input) and all(
            map(self._same_operand, one.input, two.input)
        )

    def region(self, pair: Correspondence) -> Region:
        """The region that makes a pair of values."""
        opened: set[str] = set()  # old values at which the walks must not stop
        while True:
            old_nodes, old_stops = self._back(self.old, pair.old, self._stop_old(pair, opened))
            new_nodes, new_stops = self._back(self.new, pair.new, self._stop_new(pair, opened))
            apart = [v for v in old_stops.keys() ^ new_stops.keys() if not self.old.free(v)]
            if not apart or len(old_nodes) + len(new_nodes) > _MOST:
                break
            opened.add(max(apart, key=self.height))
        cut = list({**old_stops, **new_stops}.values())
        return Region(pair, cut, sorted(old_nodes), sorted(new_nodes))

    def height(self, value: str) -> int:
        """The number of the old node that makes a value; -1 for what comes from outside."""
        return self.old.producers.get(value, -1)

    def _stop_old(self, target: Correspondence, opened: set[str]) -> Stop:
        def stop(name: str) -> Correspondence | None:
            pair = self.found.get(name)
            if pair is None or name == target.old or name in opened:
                return None
            return pair

        return stop

    def _stop_new(self, target: Correspondence, opened: set[str]) -> Stop:
        """The latest pair in front of the target: behind a node that is gone, one value is many."""
        height = self.height(target.old)

        def stop(name: str) -> Correspondence | None:
            there = self.by_new.get(name, ())
            open_ = [p for p in there if p.old not in opened and self.height(p.old) < height]
            return max(open_, key=lambda p: self.height(p.old), default=None)

        return stop

    def _back(self, side: Side, value: str, stop: Stop) -> tuple[set[int], Stops]:
        """(the nodes behind a value, the pairs at which the walk stops by old name)."""
        nodes: set[int] = set()
        stops: Stops = {}
        stack, seen = [value], {value}
        while stack:
            name = stack.pop()
            pair = stop(name)
            if pair is not None:
                stops[pair.old] = pair
                continue
            index = side.producers.get(name)
            if index is None:
                if side.free(name):
                    stops[name] = Correspondence(name, name)
                continue
            nodes.add(index)
            for read in side.read_by(index):
                if read not in seen:
                    seen.add(read)
                    stack.append(read)
        return nodes, stops


Stop = Callable[[str], Correspondence | None]
Stops = dict[str, Correspondence]


def is_plain(pair: Correspondence) -> bool:
    """Whether a pair is the same numbers."""
    return pair.old_map is None and pair.new_map is None


def same_tensor(old: Side, a: onnx.TensorProto, new: Side, b: onnx.TensorProto) -> bool:
    """Whether two initializers hold the same numbers."""
    if a.data_type != b.data_type or a.dims != b.dims:
        return False
    if a.HasField("raw_data") and b.HasField("raw_data"):
        return bool(a.raw_data == b.raw_data)
    one, other = old.whole.view(a), new.whole.view(b)
    if one.dtype.kind in "OUS":
        return bool((one == other).all())
    left, right = (x.reshape(-1).view(np.uint8) for x in (one, other))
    step = 1 << 24
    return all(
        np.array_equal(left[i : i + step], right[i : i + step]) for i in range(0, left.size, step)
    )
