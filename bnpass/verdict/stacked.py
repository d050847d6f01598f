"""Regions of one shape evaluated together: the same nodes on the same inputs, other weights.

A graph of 8,000 equal blocks has 16,000 regions of two shapes. Every array gets one axis more in
front, along which the regions lie; what operators stand here take such arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx

from bnpass.ir.affine import Map
from bnpass.ir.correspondence import Correspondence
from bnpass.onnx_model.attributes import is_onnx
from bnpass.verdict.bounds import squared
from bnpass.verdict.evaluator.call import TABLE, Array, Invocation
from bnpass.verdict.evaluator.conv import convolve
from bnpass.verdict.evaluator.run import attributes_of, wide
from bnpass.verdict.regions import Region
from bnpass.verdict.side import Side

TOGETHER = 1 << 19
"""Entries of the largest arrays of a stack, about."""

Function = Callable[[Invocation], Any]


def _rank(a: Array, rank: int) -> Array:
    """A stack of arrays with axes of size 1 put in behind the first, up to a rank."""
    return a.reshape(a.shape[0], *([1] * (rank - a.ndim)), *a.shape[1:])


def _conv(call: Invocation) -> Array:
    """x (1 or G, N, C, *S), w (G, M, C/g, *K), bias (G, M)."""
    x, w = call[0], call[1]
    if len(x) == 1:  # one value for all: one convolution with all their channels
        y = _conv_shared(call, x[0], w)
    else:
        y = np.stack([convolve(call, *pair) for pair in zip(x, w, strict=True)])
    bias = call.get(2)
    return y if bias is None else y + bias.reshape(len(bias), 1, -1, *([1] * (y.ndim - 3)))


def _conv_shared(call: Invocation, x: Array, w: Array) -> Array:
    count, group = len(w), int(call.attrs.get("group", 1))
    per = w.shape[1] // group
    # Grouped: the channels of one group of all regions lie side by side.
    parts = w.reshape(count, group, per, *w.shape[2:]).swapaxes(0, 1)
    y = convolve(call, x, parts.reshape(group * count * per, *w.shape[2:]))
    y = y.reshape(len(x), group, count, per, *y.shape[2:])
    return np.moveaxis(y, 2, 0).reshape(count, len(x), group * per, *y.shape[4:])


def _gemm(call: Invocation) -> Any:
    a = call[0].swapaxes(-1, -2) if call.attrs.get("transA", 0) else call[0]
    b = call[1].swapaxes(-1, -2) if call.attrs.get("transB", 0) else call[1]
    y = float(call.attrs.get("alpha", 1.0)) * np.matmul(a, b)
    c = call.get(2)
    return y if c is None else y + float(call.attrs.get("beta", 1.0)) * _rank(c, y.ndim)


def _matmul(call: Invocation) -> Any:
    rank = max(call[0].ndim, call[1].ndim)
    return np.matmul(_rank(call[0], rank), _rank(call[1], rank))


def _norm_parts(call: Invocation) -> list[Array]:
    shape = (1, -1, *([1] * (call[0].ndim - 3)))
    return [call[i].reshape(len(call[i]), *shape) for i in range(1, 5)]


def _epsilon(call: Invocation) -> float:
    return float(np.float32(call.attrs.get("epsilon", 1e-5)))


def _batch_norm(call: Invocation) -> Array:
    scale, bias, mean, var = _norm_parts(call)
    return np.asarray((call[0] - mean) / np.sqrt(var + _epsilon(call)) * scale + bias)


def _batch_norm_squared(call: Invocation) -> Array:
    scale, bias, mean, var = _norm_parts(call)
    return np.asarray(scale / (np.sqrt(var) + _epsilon(call)) * (call[0] + mean) + bias)


def _aligned(function: Callable[[Array, Array], Array]) -> Function:
    def run(call: Invocation) -> Array:
        rank = max(call[0].ndim, call[1].ndim)
        return function(_rank(call[0], rank), _rank(call[1], rank))

    return run


def _same(kind: str) -> Function:
    function = TABLE[kind]

    def run(call: Invocation) -> Array:
        found = function(call)[0]
        assert found is not None
        return found

    return run


def _gemm_squared(call: Invocation) -> Any:
    alpha, beta = (float(call.attrs.get(n, 1.0)) for n in ("alpha", "beta"))
    call.attrs = {**call.attrs, "alpha": alpha * alpha, "beta": beta * beta}
    return _gemm(call)


PLAIN: dict[str, Function] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "BatchNormalization": _batch_norm,
    "Add": _aligned(np.add), "Sub": _aligned(np.subtract), "Mul": _aligned(np.multiply),
    "Div": _aligned(np.divide), "Relu": _same("Relu"), "Identity": _same("Identity"),
    "Neg": _same("Neg"),
}  # fmt: skip
"""Operators on stacks."""

SQUARED: dict[str, Function] = {
    **{kind: PLAIN[kind] for kind in ("Conv", "MatMul", "Add", "Mul", "Div", "Relu", "Identity")},
    "Neg": PLAIN["Identity"], "Sub": PLAIN["Add"], "Gemm": _gemm_squared,
    "BatchNormalization": _batch_norm_squared,
}  # fmt: skip
"""The same on squared operands (see :mod:`bnpass.verdict.bounds`)."""


class Forms:
    """Tells which regions are of one shape.

    Args:
        old, new: the graphs.
    """

    def __init__(self, old: Side, new: Side) -> None:
        self.old, self.new = old, new
        self._attributes: dict[int, Hashable] = {}

    def of(self, region: Region) -> Hashable | None:
        """What regions must share to be evaluated together; None for one that has to stay alone."""
        cut = region.cut
        if any(p.old_map is not None and p.new_map is not None for p in (*cut, region.target)):
            return None
        if len(region.old_nodes) + len(region.new_nodes) > 12:
            return None
        names_old = {p.old: i for i, p in enumerate(cut)}
        names_new = {p.new: i for i, p in enumerate(cut)}
        if len(names_new) != len(cut):
            return None
        one = self._nodes(self.old, region.old_nodes, names_old)
        two = self._nodes(self.new, region.new_nodes, names_new)
        if one is None or two is None:
            return None
        ends = names_old.get(region.target.old), names_new.get(region.target.new)
        shapes = tuple(self._cut(p) for p in cut)
        if any(s is None for s in shapes) or None in ends:
            return None
        return one, two, ends, shapes, map_shapes(region.target)

    def _cut(self, pair: Correspondence) -> Hashable | None:
        shape, element = self.old.shape(pair.old), self.old.element(pair.old)
        if shape is None or len(shape) < 2 or element not in (0, 1, 11):
            return None
        return shape, map_shapes(pair)

    def _nodes(self, side: Side, nodes: Sequence[int], names: dict[str, int]) -> Hashable | None:
        found = []
        for index in nodes:
            node = side.graph.node[index]
            if node.op_type not in PLAIN or not is_onnx(node):
                return None
            if node.op_type == "BatchNormalization" and len(node.output) > 1:
                return None
            inputs: list[Hashable] = []
            for name in node.input:
                if name in names:
                    inputs.append(names[name])
                    continue
                tensor = side.tensor(name) if name else None
                if name and (tensor is None or tensor.data_type not in (1, 11)):
                    return None
                if tensor is not None and math.prod(tensor.dims) > TOGETHER:
                    return None  # a large one gains nothing
                inputs.append(None if tensor is None else (*tensor.dims, tensor.data_type))
            names[node.output[0]] = len(names)
            found.append((node.op_type, attribute_text(node), tuple(inputs)))
        return tuple(found)


def map_shapes(pair: Correspondence) -> Hashable:
    """The shapes of a pair's maps."""
    return tuple(None if m is None else (m.scale.shape, m.shift.shape)
                 for m in (pair.old_map, pair.new_map))  # fmt: skip


def attribute_text(node: onnx.NodeProto) -> Hashable:
    """A node's attributes, in a form that compares."""
    return tuple(a.SerializeToString() for a in node.attribute)


class Stack:
    """Regions of one form.

    Args:
        old, new: the graphs.
        regions: of one form.
    """

    def __init__(self, old: Side, new: Side, regions: Sequence[Region]) -> None:
        self.old, self.new, self.regions = old, new, regions
        self.kinds: set[str] = set()

    def inputs(self, numbers: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """The old and the new inputs from numbers that all regions share."""
        old, new = [], []
        for index, z in enumerate(numbers):
            pairs = [r.cut[index] for r in self.regions]
            old.append(mapped([p.new_map for p in pairs], z[None]))
            new.append(mapped([p.old_map for p in pairs], z[None]))
        return old, new

    def run(self, numbers: Sequence[Array]) -> tuple[Array, Array, Array]:
        """(old side, new side, the sum of the new side's squared terms) of the targets."""
        given_old, given_new = self.inputs(numbers)
        template = self.regions[0]
        names_old = [p.old for p in template.cut]
        names_new = [p.new for p in template.cut]
        targets = [r.target for r in self.regions]
        a = self._evaluate(self.old, "old_nodes", names_old, given_old, template.target.old)
        self.kinds.clear()
        b = self._evaluate(self.new, "new_nodes", names_new, given_new, template.target.new)
        s = self._evaluate(self.new, "new_nodes", names_new, [g * g for g in given_new],
                           template.target.new, squares=True)  # fmt: skip
        s = s + b * b
        factors = [t.new_map for t in targets]
        if factors[0] is not None:
            maps = [m for m in factors if m is not None]
            s = s * np.stack([m.scale for m in maps]) ** 2 + np.stack([m.shift for m in maps]) ** 2
        return mapped([t.old_map for t in targets], a), mapped(factors, b), s

    def _evaluate(
        self, side: Side, which: str, names: list[str], given: list[Array], target: str,
        squares: bool = False,
    ) -> Array:
        values = dict(zip(names, given, strict=True))
        table = SQUARED if squares else PLAIN
        lists: list[list[int]] = [getattr(r, which) for r in self.regions]
        for position, index in enumerate(lists[0]):
            template = side.graph.node[index]
            nodes = [side.graph.node[places[position]] for places in lists]
            inputs: list[Array | None] = []
            for slot, name in enumerate(template.input):
                if not name or name in values:
                    inputs.append(values[name] if name else None)
                else:
                    inputs.append(self.constants(side, [n.input[slot] for n in nodes], squares))
            call = Invocation(template.op_type, attributes_of(template), inputs, [True],
                        side.whole.opset)  # fmt: skip
            with np.errstate(all="ignore"):
                values[template.output[0]] = table[template.op_type](call)
        return values[target]

    def constants(self, side: Side, names: Sequence[str], squares: bool) -> Array:
        """Constants of all regions, one behind the other; or their squares."""
        tensors = [side.tensor(name) for name in names]
        arrays = [side.whole.view(t) for t in tensors if t is not None]
        self.kinds.add(arrays[0].dtype.name)
        stacked = wide(np.stack(arrays))
        return squared(stacked) if squares else stacked


def mapped(maps: Sequence[Map | None], z: Array) -> Array:
    """Each region's map of a stack; nothing where they have none."""
    first = maps[0]
    if first is None:
        return z
    scale = np.stack([m.scale for m in maps if m is not None])
    shift = np.stack([m.shift for m in maps if m is not None])
    return np.asarray(scale * z + shift)


def chunks(region: Region, side: Side, numbers: Sequence[Array], count: int) -> Iterator[slice]:
    """Slices of so many regions as fit into a processor's cache together."""
    size = sum(z.size for z in numbers)
    for index in region.new_nodes:
        for name in side.graph.node[index].input:
            tensor = side.tensor(name) if name else None
            size += math.prod(tensor.dims) if tensor is not None else 0
    step = max(TOGETHER // max(size, 1), 1)
    for start in range(0, count, step):
        yield slice(start, start + step)
