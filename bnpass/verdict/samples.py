"""Numbers for a region's inputs: seeded, of every sign and size, on extents as small as may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from bnpass.ir.affine import Map
from bnpass.ir.correspondence import Correspondence
from bnpass.onnx_model.attributes import attribute, is_onnx
from bnpass.verdict.regions import Region
from bnpass.verdict.side import Array, Side

SAMPLES = 6
"""Samples at once where a region's first axis is free."""

_ANY = 3  # of a dimension that nothing is known of
_MOST_TURNS = 64

_LOCAL = frozenset(
    """
    Conv ConvTranspose MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool
    BatchNormalization InstanceNormalization Relu LeakyRelu PRelu Sigmoid Tanh HardSigmoid
    HardSwish Clip Elu Selu Softplus Erf Gelu Mish Identity Dropout Cast Add Sub Mul Div Neg Sum
    Max Min Mean Constant Pad DepthToSpace SpaceToDepth Upsample Abs Sqrt Exp
    """.split()  # noqa: SIM905
)
"""Operators that treat samples and places alike, so that fewer of them tell as much."""

_WINDOWS = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})


class SampleSizes:
    """The shapes that a region's inputs get.

    Args:
        old: the graph that knows the shapes.
        region: whose inputs.
        shrink: as few samples and places as tell everything; False: what the model says.
    """

    def __init__(self, old: Side, region: Region, shrink: bool) -> None:
        self.old, self.symbols = old, dict[str, int]()
        nodes = [old.graph.node[i] for i in region.old_nodes]
        self.local = shrink and all(is_onnx(n, *_LOCAL) for n in nodes) and not any(
            self._is_placed(name) for node in nodes for name in node.input
        )
        self.extent = _extent(old, nodes)
        self.wanted = _wanted(old, nodes)

    def _is_placed(self, name: str) -> bool:
        """Whether a constant differs from place to place."""
        tensor = self.old.tensor(name) if name else None
        if tensor is None or len(tensor.dims) < 3:
            return False
        return False if tensor.dims[0] > 1 else any(d > 1 for d in tensor.dims[2:])

    def of(self, name: str) -> tuple[int, ...] | None:
        """The shape of one input; None where not even its rank is known."""
        known = self.old.shape(name)
        if known is None:
            return None
        wanted = {axis % len(known): n for axis, n in self.wanted.get(name, {}).items()}
        return tuple(
            wanted.get(axis) or self._size(axis, dim, len(known)) for axis, dim in enumerate(known)
        )

    def _size(self, axis: int, dim: int | str | None, rank: int) -> int:
        if axis == 0 and rank > 1 and (self.local or not isinstance(dim, int)):
            return SAMPLES
        if self.local and axis >= 2:
            return min(dim, self.extent) if isinstance(dim, int) else self.extent
        if isinstance(dim, int):
            return dim
        if isinstance(dim, str):
            return self.symbols.setdefault(dim, SAMPLES if axis == 0 and rank > 1 else self._free())
        return self._free()

    def _free(self) -> int:
        return max(_ANY, self.extent)


def _wanted(old: Side, nodes: Sequence[onnx.NodeProto]) -> dict[str, dict[int, int]]:
    """What constants say of the sizes of what is read beside them: value -> axis -> size."""
    found: dict[str, dict[int, int]] = {}
    for node in nodes:
        if len(node.input) < 2:
            continue
        tensor, other = old.tensor(node.input[1]), old.tensor(node.input[0])
        if tensor is not None and is_onnx(node, "Conv") and len(tensor.dims) > 1:
            found.setdefault(node.input[0], {})[1] = tensor.dims[1] * attribute(node, "group", 1)
        elif tensor is not None and is_onnx(node, "ConvTranspose", "BatchNormalization"):
            found.setdefault(node.input[0], {})[1] = tensor.dims[0]
        elif tensor is not None and is_onnx(node, "Gemm"):
            axis = 0 if attribute(node, "transA", 0) else 1
            size = tensor.dims[1 if attribute(node, "transB", 0) else 0]
            found.setdefault(node.input[0], {})[axis] = size
        elif tensor is not None and is_onnx(node, "MatMul") and len(tensor.dims) > 1:
            found.setdefault(node.input[0], {})[-1] = tensor.dims[-2]
        elif other is not None and is_onnx(node, "MatMul"):
            found.setdefault(node.input[1], {})[-2] = other.dims[-1]
    return found


def _extent(old: Side, nodes: Sequence[onnx.NodeProto]) -> int:
    """Places an axis, so that every tap of every kernel reads something else than padding."""
    reach, step = 1, 1
    for node in nodes:
        if not is_onnx(node, *_WINDOWS):
            continue
        kernel = attribute(node, "kernel_shape") or _kernel(old, node)
        axes = len(kernel)
        dilations = attribute(node, "dilations") or [1] * axes
        strides = attribute(node, "strides") or [1] * axes
        if node.op_type == "ConvTranspose":
            reach += 1
            continue
        reach += step * max(d * (k - 1) for d, k in zip(dilations, kernel, strict=True))
        step *= max(strides)
    return reach + step


def _kernel(old: Side, node: onnx.NodeProto) -> list[int]:
    tensor = old.tensor(node.input[1]) if len(node.input) > 1 else None
    return list(tensor.dims[2:]) if tensor is not None else [3]


def draw(
    old: Side, region: Region, sizes: SampleSizes, rng: np.random.Generator, turn: int
) -> tuple[dict[str, Array], dict[str, Array]] | None:
    """Numbers for the old and for the new inputs of a region, that meet its correspondences.

    None where the shape of an input is not known.
    """
    old_values: dict[str, Array] = {}
    new_values: dict[str, Array] = {}
    for pair in region.cut:
        shape = sizes.of(pair.old)
        if shape is None:
            return None
        element = old.element(pair.old)
        if element and element not in _FLOATS:
            array = _whole_numbers(old, region, pair, shape, element, rng, turn)
            old_values[pair.old] = new_values[pair.new] = array
            continue
        shape = fitted(pair, shape)
        a, b = related(pair, floats(shape, rng, turn), floats(shape, rng, turn))
        old_values[pair.old] = a
        new_values.setdefault(pair.new, b)
    return old_values, new_values


_FLOATS = frozenset({1, 10, 11, 16})  # float, float16, double, bfloat16


def fitted(pair: Correspondence, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with the sizes that the maps have."""
    sizes = list(shape)
    for m in (pair.old_map, pair.new_map):
        for axis, size in enumerate(m.shape if m is not None and m.rank == len(shape) else ()):
            sizes[axis] = size if size > 1 else sizes[axis]
    return tuple(sizes)


def related(pair: Correspondence, z: Array, w: Array) -> tuple[Array, Array]:
    """(old, new) with ``old_map(old) = new_map(new)``, made of free numbers z and w."""
    if pair.new_map is None:
        return z, pair.of_old(z)
    if pair.old_map is None:
        return pair.of_new(z), z
    a, b = (np.broadcast_to(m.scale, z.shape) for m in (pair.old_map, pair.new_map))
    with np.errstate(all="ignore"):
        new = np.where(b != 0, (pair.of_old(z) - _shift(pair.new_map, z)) / b, w)
        old = np.where((b == 0) & (a != 0), (pair.of_new(new) - _shift(pair.old_map, z)) / a, z)
    return old, new


def _shift(m: Map, z: Array) -> Array:
    return np.broadcast_to(m.shift, z.shape)


_STYLES = ("signs", "normal", "few", "large", "tiny", "normal")


def floats(shape: tuple[int, ...], rng: np.random.Generator, turn: int) -> Array:
    """Along the first axis in turn: signs alone, normal, mostly zero, large, tiny."""
    if len(shape) < 2 or shape[0] == 1:
        return _styled(shape, rng, _STYLES[turn % len(_STYLES)])
    rows = [_styled(shape[1:], rng, _STYLES[(turn + i) % len(_STYLES)]) for i in range(shape[0])]
    return np.stack(rows)


def _styled(shape: tuple[int, ...], rng: np.random.Generator, style: str) -> Array:
    if style == "signs":  # every weight counts by its own size
        return rng.integers(0, 2, shape) * 2.0 - 1
    found = rng.standard_normal(shape)
    if style == "few":
        return np.where(rng.random(shape) < 0.25, found, 0.0)
    return found * {"normal": 1.0, "large": 100.0, "tiny": 1e-3}[style]


def _whole_numbers(
    old: Side,
    region: Region,
    pair: Correspondence,
    shape: tuple[int, ...],
    element: int,
    rng: np.random.Generator,
    turn: int,
) -> Array:
    """Indices over the rows of the table that they are for; else bits, or codes of 8 bits."""
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    rows = _rows(old, region, pair.old)
    if rows:
        count = math.prod(shape)
        every = (np.arange(count) + turn * count) % rows
        return every.reshape(shape).astype(kind)
    if kind.itemsize == 1:
        low = 0 if kind.kind == "u" else -128
        return rng.integers(low, low + 256, shape).astype(kind)
    return rng.integers(0, 2, shape).astype(kind)


def turns(old: Side, region: Region, sizes: SampleSizes) -> int:
    """How many draws a region wants: more where one does not reach every row of a table."""
    wanted = 1 if sizes.local else 2
    for pair in region.cut:
        rows, shape = _rows(old, region, pair.old), sizes.of(pair.old)
        if rows and shape is not None:
            wanted = max(wanted, -(-rows // max(math.prod(shape), 1)))
    return min(wanted, _MOST_TURNS)


def _rows(old: Side, region: Region, value: str) -> int:
    """Rows of the constant table that a value indexes; 0 where it indexes none."""
    for index in region.old_nodes:
        node = old.graph.node[index]
        if is_onnx(node, "Gather", "GatherElements") and list(node.input[1:2]) == [value]:
            tensor = old.tensor(node.input[0])
            if tensor is not None:
                return int(tensor.dims[attribute(node, "axis", 0)])
            shape = old.shape(node.input[0])
            size = None if shape is None else shape[attribute(node, "axis", 0)]
            return size if isinstance(size, int) else 0
    return 0
