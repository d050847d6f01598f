"""Operators that move entries without touching them: the same is done to the map's arrays.

NaN in an asked map means that nobody reads the entry through this operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Dim, Op
from bnpass.rules.base import MapRefusedError, Rule, RuleContext, Step, data_only, only, size
from bnpass.rules.reshape import regroup


def normal_axis(axis: int, rank: int) -> int:
    """A negative axis counts from the end."""
    return axis + rank if axis < 0 else axis


def integers(op: Op, index: int, context: RuleContext) -> list[int] | None:
    """A constant integer input as a list; None when it is left out; refused when computed."""
    name = op.input(index)
    if not name:
        return None
    constant = context.constant(name)
    if constant is None:
        raise MapRefusedError(f"its input {name!r} is computed at run time", op)
    if len(constant.shape) > 1:
        raise MapRefusedError(f"its input {name!r} is no vector", op)
    return [int(v) for v in np.atleast_1d(constant.small)]


# --- Transpose


def _perm(op: Op, rank: int) -> list[int]:
    return [int(p) for p in op.attrs.get("perm") or range(rank - 1, -1, -1)]


def transpose_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """The axes move back."""
    m = only(asks)
    back = np.argsort(_perm(op, m.rank))
    return [Step(asks={0: m.each(lambda a: a.transpose(back))})]


def transpose_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """The axes move."""
    m = data_only(op, carried)
    perm = _perm(op, m.rank)
    return [Step(gives={0: m.each(lambda a: a.transpose(perm))})]


# --- Reshape, Flatten, Squeeze, Unsqueeze


def reshape_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """The channel axis splits or merges back, along runs of axes with equal products."""
    m = only(asks)
    return [
        Step(asks={0: regroup(m, context.shape(op.outputs[0]), context.shape(op.inputs[0]), op)})
    ]


def reshape_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """The channel axis splits or merges, along runs of axes with equal products."""
    m = data_only(op, carried)
    return [
        Step(gives={0: regroup(m, context.shape(op.inputs[0]), context.shape(op.outputs[0]), op)})
    ]


# --- DepthToSpace, SpaceToDepth


def _spread(a: np.ndarray, block: int, crd: bool) -> np.ndarray:
    """C channels -> C*block*block channels: DCR is block*C + c, CRD is c*block*block + block."""
    if a.shape[1] == 1:
        return a
    repeated = np.repeat(a, block * block, 1) if crd else np.tile(a, (1, block * block, 1, 1))
    return np.asarray(repeated)


def _gather(a: np.ndarray, block: int, crd: bool, op: Op) -> np.ndarray:
    """C*block*block channels -> C, all entries that meet being equal."""
    if a.shape[1] == 1:
        return a
    n = a.shape[1] // (block * block)
    parts = a.reshape(n, block * block).T if crd else a.reshape(block * block, n)
    if not (parts == parts[:1]).all():
        raise MapRefusedError("channels that need different maps are merged", op)
    return np.asarray(parts[0].reshape(1, n, 1, 1))


def _blocks(op: Op, m: Map) -> tuple[int, bool]:
    if any(axis != 1 for axis in m.axes):
        raise MapRefusedError("the map varies along another axis than the channels", op)
    return int(op.attrs["blocksize"]), op.attrs.get("mode", "DCR") == "CRD"


def depth_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """DepthToSpace backward spreads channels, SpaceToDepth backward needs them equal."""
    m = only(asks)
    block, crd = _blocks(op, m)
    if op.kind == "DepthToSpace":
        return [Step(asks={0: m.each(lambda a: _spread(a, block, crd))})]
    return [Step(asks={0: m.each(lambda a: _gather(a, block, False, op))})]


def depth_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """DepthToSpace forward needs the merged channels equal, SpaceToDepth forward spreads them."""
    m = data_only(op, carried)
    block, crd = _blocks(op, m)
    if op.kind == "DepthToSpace":
        return [Step(gives={0: m.each(lambda a: _gather(a, block, crd, op))})]
    return [Step(gives={0: m.each(lambda a: _spread(a, block, False))})]


# --- Expand, Tile


def expand_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """Entries that are copies of one must ask the same of it."""
    m = only(asks).compact()
    dims = context.shape(op.inputs[0])
    extra = m.rank - len(dims)
    for axis in m.axes:
        if axis < extra or dims[axis - extra] != m.shape[axis]:
            raise MapRefusedError("copies of one entry would need different maps", op)
    return [Step(asks={0: m.each(lambda a: a.reshape(a.shape[extra:]))})]


def expand_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """Axes come in front."""
    m = data_only(op, carried)
    rank = len(context.shape(op.outputs[0]))
    return [Step(gives={0: m.each(lambda a: a.reshape((1,) * (rank - m.rank) + a.shape))})]


def tile_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """Entries that are copies of one must ask the same of it."""
    m = only(asks)
    repeats = integers(op, 1, context) or []

    def fold(a: np.ndarray) -> np.ndarray:
        for axis, n in enumerate(repeats):
            if a.shape[axis] > 1 and n > 1:
                parts = np.stack(np.split(a, n, axis))
                if not (parts == parts[:1]).all():
                    raise MapRefusedError("copies of one entry would need different maps", op)
                a = parts[0]
        return a

    return [Step(asks={0: m.each(fold)})]


def tile_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """The map repeats with its entries."""
    m = data_only(op, carried)
    repeats = integers(op, 1, context) or []

    def unfold(a: np.ndarray) -> np.ndarray:
        return np.tile(a, [n if d > 1 else 1 for n, d in zip(repeats, a.shape, strict=True)])

    return [Step(gives={0: m.each(unfold)})]


# --- Concat, Split


def _sizes(op: Op, names: Sequence[str], axis: int, context: RuleContext) -> list[int]:
    return [size(context.shape(n)[axis], op, f"axis {axis} of {n!r}") for n in names]


def _pieces(m: Map, axis: int, sizes: list[int]) -> list[Map]:
    """A map cut along an axis."""
    if m.shape[axis] == 1:
        return [m] * len(sizes)
    ends = np.cumsum(sizes)

    def cut(a: np.ndarray, begin: int, end: int) -> np.ndarray:
        return a if a.shape[axis] == 1 else a.take(range(begin, end), axis)

    return [
        Map(cut(m.scale, e - n, e), cut(m.shift, e - n, e))
        for n, e in zip(sizes, ends, strict=True)
    ]


def _joined(maps: list[Map], axis: int, sizes: list[int]) -> Map:
    """Maps side by side along an axis; along the others they are broadcast."""
    rank = maps[0].rank

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        other = np.broadcast_shapes(*((*a.shape[:axis], 1, *a.shape[axis + 1 :]) for a in arrays))
        full = [
            np.broadcast_to(a, [n if i == axis else other[i] for i in range(rank)])
            for a, n in zip(arrays, sizes, strict=True)
        ]
        return np.concatenate(full, axis)

    return Map(join([m.scale for m in maps]), join([m.shift for m in maps]))


def _all_equal(maps: list[Map]) -> bool:
    return all(m.equals(maps[0]) for m in maps[1:])


def concat_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """On the channel axis every operand gets its slice, on another one all get the same."""
    m = only(asks)
    axis = normal_axis(int(op.attrs["axis"]), m.rank)
    if m.shape[axis] == 1:
        return [Step(asks=dict.fromkeys(range(len(op.inputs)), m))]
    pieces = _pieces(m, axis, _sizes(op, op.inputs, axis, context))
    return [Step(asks=dict(enumerate(pieces)))]


def concat_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """On the channel axis the others carry the identity, on another one all carry the same."""
    rank = next(iter(carried.values())).rank
    axis = normal_axis(int(op.attrs["axis"]), rank)
    maps = [carried.get(i, Map.identity(rank)) for i in range(len(op.inputs))]
    if _all_equal(maps) and maps[0].shape[axis] == 1:
        return [Step(gives={0: maps[0]})]
    if any(set(m.axes) - {axis} for m in maps):
        raise MapRefusedError("not all of its operands carry the same map", op)
    return [Step(gives={0: _joined(maps, axis, _sizes(op, op.inputs, axis, context))})]


def split_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """Outputs that ask for nothing keep what they have."""
    rank = next(m for m in asks if m is not None).rank
    axis = normal_axis(int(op.attrs.get("axis", 0)), rank)
    sizes = _sizes(op, op.outputs, axis, context)
    unread = Map.identity(rank).each(lambda a: a * np.nan)
    maps = [
        m if m is not None else unread if context.unread(name) else Map.identity(rank)
        for m, name in zip(asks, op.outputs, strict=True)
    ]
    if _all_equal(maps) and maps[0].shape[axis] == 1:
        return [Step(asks={0: maps[0]})]
    if any(set(m.axes) - {axis} for m in maps):
        raise MapRefusedError("its outputs need different maps", op)
    return [Step(asks={0: _joined(maps, axis, sizes)})]


def split_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """Every output carries its slice."""
    m = data_only(op, carried)
    axis = normal_axis(int(op.attrs.get("axis", 0)), m.rank)
    if m.shape[axis] == 1:
        return [Step(gives=dict.fromkeys(range(len(op.outputs)), m))]
    return [Step(gives=dict(enumerate(_pieces(m, axis, _sizes(op, op.outputs, axis, context)))))]


# --- Slice, Gather with constant indices


def slices(op: Op, rank: int, context: RuleContext) -> dict[int, slice]:
    """Python slices by axis of ONNX's Slice (starts, ends, axes, steps: inputs 1 to 4)."""
    starts, ends = integers(op, 1, context) or [], integers(op, 2, context) or []
    axes = integers(op, 3, context) or list(range(len(starts)))
    steps = integers(op, 4, context) or [1] * len(starts)
    found = {}
    for axis, begin, end, step in zip(axes, starts, ends, steps, strict=True):
        stop: int | None = end
        if step < 0 and end < -(2**30):
            stop = None
        found[normal_axis(axis, rank)] = slice(begin, stop, step)
    return found


def scatter(a: np.ndarray, axis: int, n: int, index: np.ndarray, op: Op) -> np.ndarray:
    """Undo ``take(index)`` along an axis of n entries: NaN where nobody reads."""
    moved = np.moveaxis(a, axis, 0)
    out = np.full((n, *moved.shape[1:]), np.nan)
    out[index] = moved
    if not np.array_equal(out[index], moved, equal_nan=True):
        raise MapRefusedError("one entry is read twice, with different maps", op)
    return np.moveaxis(out, 0, axis)


def _slice_back(a: np.ndarray, cuts: dict[int, slice], op: Op, dims: Sequence[Dim]) -> np.ndarray:
    for axis, cut in cuts.items():
        n = size(dims[axis], op, f"axis {axis}") if a.shape[axis] > 1 else dims[axis]
        if not isinstance(n, int):
            continue
        index = np.arange(n)[cut]
        if len(index) < n or a.shape[axis] > 1:
            full = np.broadcast_to(
                a, [len(index) if i == axis else d for i, d in enumerate(a.shape)]
            )
            a = scatter(full, axis, n, index, op)
    return a


def slice_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """Entries cut away are asked for nothing."""
    m = only(asks)
    cuts, dims = slices(op, m.rank, context), context.shape(op.inputs[0])
    return [Step(asks={0: m.each(lambda a: _slice_back(a, cuts, op, dims))})]


def slice_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """The map is sliced; along other axes than its own it passes."""
    m = data_only(op, carried)
    cuts = slices(op, m.rank, context)

    def cut(a: np.ndarray) -> np.ndarray:
        whole = slice(None)
        return a[tuple(cuts.get(i, whole) if n > 1 else whole for i, n in enumerate(a.shape))]

    return [Step(gives={0: m.each(cut)})]


def _indices(op: Op, context: RuleContext) -> np.ndarray:
    constant = context.constant(op.inputs[1])
    if constant is None:
        raise MapRefusedError("its indices are computed at run time", op)
    return constant.small


def gather_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """A constant table takes the map in; with constant indices, entries not read ask nothing."""
    m = only(asks)
    if context.constant(op.inputs[0]) is not None:
        return [_table(op, m, context)]
    index = _indices(op, context)
    dims = context.shape(op.inputs[0])
    axis = normal_axis(int(op.attrs.get("axis", 0)), len(dims))
    n = size(dims[axis], op, f"axis {axis} of its data")

    def back(a: np.ndarray) -> np.ndarray:
        lead, tail = a.shape[:axis], a.shape[axis + index.ndim :]
        full = np.broadcast_to(a, (*lead, *index.shape, *tail)).reshape(*lead, index.size, *tail)
        return scatter(full, axis, n, index.reshape(-1), op)

    return [Step(asks={0: m.each(back)})]


def _table(op: Op, m: Map, context: RuleContext) -> Step:
    constant = context.constant(op.inputs[0])
    assert constant is not None
    axis = normal_axis(int(op.attrs.get("axis", 0)), len(constant.shape))
    count = m.rank - len(constant.shape) + 1
    if any(axis <= a < axis + count for a in m.axes):
        raise MapRefusedError("the map varies along its indices", op)

    def fit(a: np.ndarray) -> np.ndarray:
        return a.reshape((*a.shape[:axis], 1, *a.shape[axis + count :]))

    return Step(constants={0: m.each(fit)})


def gather_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """Constant indices pick from the map; along other axes than its own it passes."""
    m = data_only(op, carried)
    axis = normal_axis(int(op.attrs.get("axis", 0)), m.rank)
    count = len(context.shape(op.inputs[1]))

    def pick(a: np.ndarray) -> np.ndarray:
        if a.shape[axis] > 1:
            return np.asarray(np.take(a, _indices(op, context), axis))
        return a.reshape((*a.shape[:axis], *(1,) * count, *a.shape[axis + 1 :]))

    return [Step(gives={0: m.each(pick)})]


TRANSPOSE = Rule(transpose_backward, transpose_forward)
RESHAPE = Rule(reshape_backward, reshape_forward)
DEPTH = Rule(depth_backward, depth_forward)
EXPAND = Rule(expand_backward, expand_forward)
TILE = Rule(tile_backward, tile_forward)
CONCAT = Rule(concat_backward, concat_forward)
SPLIT = Rule(split_backward, split_forward)
SLICE = Rule(slice_backward, slice_forward)
GATHER = Rule(gather_backward, gather_forward)
