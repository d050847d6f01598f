"""Linear regions coefficient by coefficient: nothing is drawn, every weight is compared.

A region of one layer and per-channel maps behind it computes y = g * (W x) + c: a gain and a
constant a channel, found by giving the maps 0 and a large number in place of what the layer makes.
Where old and new layer are the same but for their weights, equal g * W and equal c are equal
functions of every input. Each coefficient may be off by what rounding it explains, so that one
weight of 25,088 that is off by a millionth is seen. Large weights are compared in slices.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bnpass.onnx_model.attributes import attribute, is_onnx
from bnpass.verdict.bounds import SMALLEST, unit_roundoff
from bnpass.verdict.evaluator.call import Array, Invocation
from bnpass.verdict.evaluator.run import attributes_of
from bnpass.verdict.regions import Region, is_plain
from bnpass.verdict.side import Side
from bnpass.verdict.stacked import (
    PLAIN,
    SQUARED,
    TOGETHER,
    Stack,
    attribute_text,
    map_shapes,
    mapped,
)

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MAPS = frozenset({"BatchNormalization", "Mul", "Add", "Sub", "Div", "Neg", "Identity"})

_FAR = 2.0**60
"""What stands for the layer's output beside 0: a constant beside it costs no digits of a gain."""

_OWN = 2.0**-50
"""What the evaluation in float64 loses."""

_MOST = 8  # nodes of one side


@dataclass(frozen=True)
class Apart:
    """What became of one region: the worst ratio to the rounding, the difference, its channel."""

    ratio: float
    difference: float
    channel: int


@dataclass(frozen=True)
class LayerForm:
    """What regions share that are compared together; ``rank`` is of what their layers make."""

    rank: int
    text: Hashable


class LayerForms:
    """Tells which regions are linear in this sense, and of one form.

    Args:
        old, new: the graphs.
    """

    def __init__(self, old: Side, new: Side) -> None:
        self.old, self.new = old, new

    def of(self, region: Region) -> LayerForm | None:
        """What regions must share to be compared together; None for one that is not linear."""
        if len(region.cut) != 1 or not is_plain(region.cut[0]) or not _pure(region):
            return None
        (pair,) = region.cut
        target = region.target
        one = self._side(self.old, region.old_nodes, pair.old, target.old)
        two = self._side(self.new, region.new_nodes, pair.new, target.new)
        if one is None or two is None or one[0] != two[0]:
            return None
        rank = self._rank(one[0], pair.old)
        maps = [m for m in (target.old_map, target.new_map) if m is not None]
        if rank < 2 or any(m.rank != rank or set(m.axes) - {_axis(one[0][0], rank)} for m in maps):
            return None
        maps_behind = (*one[1], *two[1])
        if not all(_a_channel(kind, dims, one[0][0], rank) for kind, _, dims in maps_behind):
            return None
        return LayerForm(rank, (one, two, map_shapes(target)))

    def _rank(self, layer: tuple[Any, ...], value: str) -> int:
        kind, _, dims = layer[:3]
        if kind != "MatMul":
            return len(dims)
        shape = self.old.shape(value)
        return 0 if shape is None else len(shape)

    def _side(
        self, side: Side, nodes: Sequence[int], value: str, target: str
    ) -> Linear | None:
        if not nodes or len(nodes) > _MOST:
            return None
        first, *rest = (side.graph.node[index] for index in nodes)
        layer = _layer(side, first, value)
        bias = None if layer is None else _bias(side, first)
        if layer is None or bias is None:
            return None
        value, maps = first.output[0], []
        for node in rest:
            found = _map(side, node, value)
            if found is None:
                return None
            maps.append(found)
            value = node.output[0]
        return (layer, tuple(maps), bias) if value == target else None


_FLOATS = (1, 10, 11)


Linear = tuple[tuple[Any, ...], tuple[Any, ...], tuple[int, ...]]
"""The layer, the maps behind it and the layer's bias, by what regions of one form share."""


def _layer(side: Side, node: onnx.NodeProto, value: str) -> tuple[Any, ...] | None:
    if node.op_type not in LAYERS or not is_onnx(node) or node.input[0] != value:
        return None
    weight = side.tensor(node.input[1])
    if weight is None or weight.data_type not in _FLOATS or attribute(node, "transA", 0):
        return None
    if node.op_type == "MatMul" and len(weight.dims) != 2:
        return None
    return node.op_type, attribute_text(node), tuple(weight.dims), weight.data_type


def _bias(side: Side, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """A layer's bias by its dims, empty where it has none; None where it is no number a channel."""
    if len(node.input) < 3 or not node.input[2]:
        return ()
    bias, weight = _dims(side, node.input[2]), side.tensor(node.input[1])
    if bias is None or weight is None:
        return None
    size = math.prod(bias)
    whole = size in (1, _channels(node, weight.dims)) and (not bias or bias[-1] == size)
    return (*bias, 0) if whole else None


def _pure(region: Region) -> bool:
    return region.target.old_map is None or region.target.new_map is None


def _dims(side: Side, name: str) -> tuple[int, ...] | None:
    tensor = side.tensor(name)
    return None if tensor is None or tensor.data_type not in _FLOATS else tuple(tensor.dims)


def _map(side: Side, node: onnx.NodeProto, value: str) -> tuple[Any, ...] | None:
    """(operator, its text, the constants' dims with None for the value)."""
    kind = node.op_type
    if kind not in _MAPS or not is_onnx(node) or list(node.input).count(value) != 1:
        return None
    if kind in ("Div", "BatchNormalization") and node.input[0] != value:
        return None
    if kind == "BatchNormalization" and (
        len(node.output) > 1 or attribute(node, "training_mode", 0)
    ):
        return None
    dims = [None if name == value else _dims(side, name) for name in node.input]
    if dims.count(None) != 1:
        return None
    return kind, attribute_text(node), tuple(dims)


def _a_channel(kind: str, dims: Sequence[Any], layer: str, rank: int) -> bool:
    """Whether a map's constants vary along the layer's channels alone."""
    axis = _axis(layer, rank)
    if kind == "BatchNormalization":
        return axis == 1
    for shape in dims:
        if shape is None:
            continue
        if len(shape) > rank:
            return False
        places = range(rank - len(shape), rank)
        if any(size > 1 and place != axis for place, size in zip(places, shape, strict=True)):
            return False
    return True


def _axis(layer: str, rank: int) -> int:
    return rank - 1 if layer == "MatMul" else 1


def _channels(node: onnx.NodeProto, dims: Sequence[int]) -> int:
    if node.op_type == "Conv":
        return dims[0]
    if node.op_type == "ConvTranspose":
        return dims[1] * int(attribute(node, "group", 1))
    return dims[0 if attribute(node, "transB", 0) else 1]


def _views(node: onnx.NodeProto, dims: Sequence[int]) -> tuple[list[int], list[int]]:
    """(shape of a weight, shape of a number a channel) that broadcast; two to four axes."""
    group, count = int(attribute(node, "group", 1)), _channels(node, dims)
    if node.op_type == "ConvTranspose":
        parts = [group, dims[0] // group, dims[1], math.prod(dims[2:])]
        return parts, [group, 1, dims[1], 1]
    if node.op_type == "Conv" or attribute(node, "transB", 0):
        return [count, math.prod(dims[1:])], [count, 1]
    return list(dims), [1, count]


class Coefficients:
    """Regions of one linear form.

    Args:
        old, new: the graphs.
        regions: of one form.
        rank: of what the layer makes.
    """

    def __init__(self, old: Side, new: Side, regions: Sequence[Region], rank: int) -> None:
        self.old, self.new, self.regions, self.rank = old, new, regions, rank
        self.stack = Stack(old, new, regions)

    def compare(self) -> list[Apart]:
        """Every coefficient and every constant, in units of what rounding explains."""
        targets = [r.target for r in self.regions]
        ends = self._ends(self.old, "old_nodes", PLAIN)
        gain, constant = self._parts(mapped([t.old_map for t in targets], ends))
        self.stack.kinds.clear()
        ends = self._ends(self.new, "new_nodes", PLAIN)
        new_gain, new_constant = self._parts(mapped([t.new_map for t in targets], ends))
        squares = self._ends(self.new, "new_nodes", SQUARED)[:, :1]
        if targets[0].new_map is not None:
            squares = squares * np.stack([t.new_map.scale for t in targets if t.new_map]) ** 2
        _, squares = self._parts(np.repeat(squares, 2, 1))
        unit = unit_roundoff(self.stack.kinds)
        with np.errstate(all="ignore"):
            rounding = np.sqrt(squares + np.square(new_constant))
            bound = unit * rounding + _OWN * (np.abs(constant) + rounding)
        constants = _worst(constant, new_constant, bound)
        found = self._weights(gain, new_gain, unit)
        return [max(pair, key=lambda f: f.ratio) for pair in zip(found, constants, strict=True)]

    def _ends(self, side: Side, which: str, table: Any) -> Array:
        """What the maps make of 0 and of :data:`_FAR`: (G, 2, channels) in the layer's rank."""
        lists: list[list[int]] = [getattr(r, which) for r in self.regions]
        squares, value, last = table is SQUARED, np.zeros(()), ""
        for position, index in enumerate(lists[0]):
            template = side.graph.node[index]
            nodes = [side.graph.node[places[position]] for places in lists]
            if not position:
                value = self._behind_layer(side, nodes, squares)
            else:
                inputs: list[Array | None] = [
                    value if name == last else self.stack.constants(
                        side, [n.input[slot] for n in nodes], squares)
                    for slot, name in enumerate(template.input)
                ]  # fmt: skip
                call = Invocation(template.op_type, attributes_of(template), inputs, [True],
                                  side.whole.opset)  # fmt: skip
                with np.errstate(all="ignore"):
                    value = table[template.op_type](call)
            last = template.output[0]
        return value

    def _behind_layer(self, side: Side, nodes: Sequence[onnx.NodeProto], squares: bool) -> Array:
        node = nodes[0]
        tensor = side.tensor(node.input[1])
        assert tensor is not None
        self.stack.kinds.add(side.whole.view(tensor).dtype.name)
        shape = [1] * self.rank
        shape[_axis(node.op_type, self.rank)] = _channels(node, tensor.dims)
        shape[0] = 2  # along the first axis lie the two
        ends = np.array([0.0, _FAR]).reshape(2, *[1] * (self.rank - 1))
        value = np.broadcast_to(ends, (len(nodes), *shape))
        if len(node.input) > 2 and node.input[2]:
            bias = self.stack.constants(side, [n.input[2] for n in nodes], squares)
            beta = float(attribute(node, "beta", 1.0)) if node.op_type == "Gemm" else 1.0
            bias = bias.reshape(len(nodes), *(-1 if n > 1 else 1 for n in (1, *shape[1:])))
            value = value + (beta * beta if squares else beta) * bias
        return np.asarray(value)

    def _parts(self, ends: Array) -> tuple[Array, Array]:
        """(gain, constant) of each region's channels, (G, channels)."""
        count = len(self.regions)
        both = ends.reshape(len(ends), 2, -1)
        both = np.broadcast_to(both, (count, *both.shape[1:]))
        with np.errstate(all="ignore"):
            return (both[:, 1] - both[:, 0]) / _FAR, both[:, 0]

    def _weights(self, gain: Array, new_gain: Array, unit: float) -> Iterator[Apart]:
        """Each region's weights, some regions or a slice of one region's at a time."""
        first = self.old.graph.node[self.regions[0].old_nodes[0]]
        alpha = float(attribute(first, "alpha", 1.0)) if first.op_type == "Gemm" else 1.0
        tensor = self.old.tensor(first.input[1])
        assert tensor is not None
        shape, channels = _views(first, tensor.dims)
        gains = [alpha * g.reshape(-1, *channels) for g in (gain, new_gain)]
        step = max(TOGETHER // max(math.prod(shape), 1), 1)
        for start in range(0, len(self.regions), step):
            part = slice(start, start + step)
            olds = [self._array(self.old, r.old_nodes, shape) for r in self.regions[part]]
            news = [self._array(self.new, r.new_nodes, shape) for r in self.regions[part]]
            one, two = (g[part] for g in gains)
            if step > 1:
                yield from _weighed(np.stack(olds), np.stack(news), one, two, unit)
            else:
                yield _sliced(olds[0], news[0], one, two, unit)

    @staticmethod
    def _array(side: Side, nodes: Sequence[int], shape: list[int]) -> Array:
        tensor = side.tensor(side.graph.node[nodes[0]].input[1])
        assert tensor is not None
        return side.whole.view(tensor).reshape(shape)


def _sliced(old: Array, new: Array, gain: Array, new_gain: Array, unit: float) -> Apart:
    """One region's large weight, slice by slice along its first axis."""
    step = max(TOGETHER // max(math.prod(old.shape[1:]), 1), 1)
    worst, along = Apart(0.0, 0.0, 0), gain.shape[1] > 1
    for start in range(0, len(old), step):
        part = slice(start, start + step)
        one, two = (g[:, part] if along else g for g in (gain, new_gain))
        (found,) = _weighed(old[None, part], new[None, part], one, two, unit)
        if found.ratio > worst.ratio:
            before = start * math.prod(gain.shape[2:]) if along else 0
            worst = Apart(found.ratio, found.difference, before + found.channel)
    return worst


def _weighed(
    old: Array, new: Array, gain: Array, new_gain: Array, unit: float
) -> Iterator[Apart]:
    """Weights of some regions, each times its channel's gain: (G, *weight), (G, *channels)."""
    with np.errstate(all="ignore"):
        one, two = gain * old, new_gain * new
        bound = np.maximum(np.abs(two), SMALLEST * np.abs(new_gain))
        bound *= unit + _OWN
    numbers = np.arange(math.prod(gain.shape[1:])).reshape(gain.shape[1:])
    channels = np.broadcast_to(numbers, old.shape[1:])
    for found in _worst(one, two, bound):
        at = np.unravel_index(found.channel, channels.shape)
        yield Apart(found.ratio, found.difference, int(channels[at]))


def _worst(old: Array, new: Array, bound: Array) -> Iterator[Apart]:
    """The worst entry of each region; its ``channel`` is the place in the region's flat array."""
    count = len(new)
    with np.errstate(all="ignore"):
        difference = np.abs(old - new)
        ratios = difference / bound
    if not np.isfinite(ratios).all():  # 0 / 0 is none; what is finite on one side alone is all
        same = (old == new) | (np.isnan(old) & np.isnan(new))
        ratios = np.where(same, 0.0, np.where(np.isnan(ratios), np.inf, ratios))
        difference = np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))
    if not ratios.size:
        return iter([Apart(0.0, 0.0, 0)] * count)
    ratios, difference = ratios.reshape(count, -1), difference.reshape(count, -1)
    places, rows = ratios.argmax(1), np.arange(count)
    found = zip(ratios[rows, places].tolist(), difference[rows, places].tolist(), places.tolist(),
                strict=True)  # fmt: skip
    return (Apart(*one) for one in found)
