"""Operators over windows and axes: pools, reductions, resizing, padding."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Op
from bnpass.rules.base import MapRefusedError, Rule, RuleContext, Step, data_only, only, size
from bnpass.rules.structure import integers, normal_axis


def _spatial(op: Op, m: Map) -> None:
    if any(axis >= 2 for axis in m.axes):
        raise MapRefusedError("the map varies along its windows", op)


def _monotone(op: Op, m: Map) -> None:
    if not m.is_monotone:
        raise MapRefusedError("a negative scale cannot pass it", op)


# --- pools


def _counts_padding(op: Op) -> bool:
    """Whether zeros of the padding enter the averages."""
    if op.kind != "AveragePool" or not op.attrs.get("count_include_pad"):
        return False
    pads = op.attrs.get("pads", ())
    return pads is None or any(pads) or bool(op.attrs.get("ceil_mode"))


def _pooled(op: Op, m: Map, context: RuleContext) -> Map:
    _spatial(op, m)
    if any(not context.unread(name) for name in op.outputs[1:] if name):
        raise MapRefusedError("its indices are read", op)
    if op.kind in ("MaxPool", "GlobalMaxPool"):
        _monotone(op, m)
    elif m.has_shift and _counts_padding(op):
        raise MapRefusedError("a shift cannot pass averages that count the zero padding", op)
    return m


def pool_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """Averages pass every map, maxima those without a negative scale."""
    return [Step(asks={0: _pooled(op, only(asks), context)})]


def pool_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """Averages pass every map, maxima those without a negative scale."""
    return [Step(gives={0: _pooled(op, data_only(op, carried), context)})]


# --- reductions


def _reduced(op: Op, rank: int, context: RuleContext) -> set[int]:
    """The axes that go; none named means all, or none with noop_with_empty_axes."""
    axes = integers(op, 1, context)
    if not axes:
        return set() if op.attrs.get("noop_with_empty_axes") else set(range(rank))
    return {normal_axis(a, rank) for a in axes}


def _count(op: Op, reduced: set[int], context: RuleContext) -> int:
    dims = context.shape(op.inputs[0])
    return prod(size(dims[a], op, f"its reduced axis {a}") for a in reduced)


def reduce_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """Mean passes, max and min without negative scales, a sum's shift is shared out."""
    m = only(asks)
    rank = len(context.shape(op.inputs[0]))
    reduced = _reduced(op, rank, context)
    if op.kind in ("ReduceMax", "ReduceMin"):
        _monotone(op, m)
    if not op.attrs.get("keepdims", 1):
        where = sorted(reduced)
        for axis in where:
            m = m.each(lambda a, axis=axis: np.expand_dims(a, axis))  # type: ignore[misc]
    if op.kind == "ReduceSum" and m.has_shift:
        m = m.with_shift(m.shift / _count(op, reduced, context))
    return [Step(asks={0: m})]


def reduce_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """Mean passes, max and min without negative scales, a sum's shift counts its entries."""
    m = data_only(op, carried)
    reduced = _reduced(op, m.rank, context)
    if reduced & set(m.axes):
        raise MapRefusedError("it reduces the channel axis", op)
    if op.kind in ("ReduceMax", "ReduceMin"):
        _monotone(op, m)
    if op.kind == "ReduceSum" and m.has_shift:
        m = m.with_shift(m.shift * _count(op, reduced, context))
    if not op.attrs.get("keepdims", 1):
        m = m.each(lambda a: a.reshape([n for i, n in enumerate(a.shape) if i not in reduced]))
    return [Step(gives={0: m})]


# --- Resize, Upsample


def _resized(op: Op, m: Map, context: RuleContext) -> Map:
    if op.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise MapRefusedError("tf_crop_and_resize writes a constant of its own", op)
    before, after = context.shape(op.inputs[0]), context.shape(op.outputs[0])
    for axis in m.axes:
        kept = before[axis] == after[axis] and isinstance(before[axis], int)
        if not kept or not _steps_by_one(op, axis, len(before), context):
            raise MapRefusedError("it resizes the channel axis", op)
    return m


def _steps_by_one(op: Op, axis: int, rank: int, context: RuleContext) -> bool:
    """Whether an axis whose size stays is not resampled: 4 entries times 1.2 are 4 others."""
    axes = [normal_axis(int(a), rank) for a in op.attrs.get("axes") or range(rank)]
    if axis not in axes:
        return True
    name = op.input(2)
    scales = context.constant(name) if name else None
    if name and scales is None:
        return False
    if scales is None or 0 in scales.shape:  # sizes: a ratio each, unless one is kept for all
        return bool(op.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch")
    return bool(scales.small.reshape(-1)[axes.index(axis)] == 1)


def resize_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """Interpolation weights add up to 1: every map passes, in every mode."""
    return [Step(asks={0: _resized(op, only(asks), context)})]


def resize_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """Interpolation weights add up to 1: every map passes, in every mode."""
    return [Step(gives={0: _resized(op, data_only(op, carried), context)})]


# --- Pad


def _pads(op: Op, rank: int, context: RuleContext) -> dict[int, tuple[int, int]]:
    """(begin, end) of every axis that is padded."""
    pads = integers(op, 1, context) or []
    axes = integers(op, 3, context) or list(range(rank))
    pairs = zip(pads[: len(axes)], pads[len(axes) :], strict=True)
    found = {normal_axis(a, rank): pair for a, pair in zip(axes, pairs, strict=True)}
    return {a: pair for a, pair in found.items() if any(pair)}


def _fill(op: Op, context: RuleContext) -> float:
    name = op.input(2)
    if name and context.constant(name) is None:
        raise MapRefusedError("its fill value is computed at run time", op)
    return float(context.current(op, 2).reshape(-1)[0])


def _one_number(values: np.ndarray, op: Op) -> float:
    first = values.reshape(-1)[0]
    if not (values == first).all():
        raise MapRefusedError("its fill value would differ from channel to channel", op)
    return float(first)


def _new_fill(old: float, new: float) -> dict[int, Map]:
    if old == new:
        return {}
    return {2: Map(np.asarray(0.0), np.asarray(new))}


def _inner(m: Map, pads: dict[int, tuple[int, int]]) -> Map:
    """The map of what lies inside the padding."""

    def cut(a: np.ndarray) -> np.ndarray:
        return a[
            tuple(
                slice(pads[i][0], n - pads[i][1]) if i in pads and n > 1 else slice(None)
                for i, n in enumerate(a.shape)
            )
        ]

    return m.each(cut)


def _outside(values: np.ndarray, pads: dict[int, tuple[int, int]]) -> np.ndarray:
    """Entries of a per-channel array that occur in the padding."""
    varied = [a for a in pads if values.shape[a] > 1]
    if len(varied) < len(pads):
        return values.reshape(-1)
    mask = np.ones(values.shape, bool)
    inside = tuple(
        slice(pads[i][0], n - pads[i][1]) if i in pads else slice(None)
        for i, n in enumerate(values.shape)
    )
    mask[inside] = False
    return values[mask]


def _check_pad(op: Op, m: Map, pads: dict[int, tuple[int, int]]) -> bool:
    """Whether the padding holds a constant; refused when it touches the channels otherwise."""
    touched = any(m.shape[a] > 1 for a in pads)
    if touched and any(v < 0 for pair in pads.values() for v in pair):
        raise MapRefusedError("it crops the channel axis", op)
    if op.attrs.get("mode", "constant") != "constant":
        if touched:
            raise MapRefusedError("it copies channels into its padding", op)
        return False
    return bool(pads)


def _only_crops(pads: dict[int, tuple[int, int]]) -> bool:
    """Whether nothing is put in: a Slice by another name, whatever the mode and the fill value."""
    return all(n <= 0 for pair in pads.values() for n in pair)


def _widened(m: Map, pads: dict[int, tuple[int, int]]) -> Map:
    """The map of what is cropped: nobody reads the entries that are cut away."""
    widths = [
        (-pads[a][0], -pads[a][1]) if a in pads and n > 1 else (0, 0) for a, n in enumerate(m.shape)
    ]
    return m.each(lambda a: np.pad(np.broadcast_to(a, m.shape), widths, constant_values=np.nan))


def pad_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """m(Pad(x, c)) = Pad(m(x), m(c)), if m(c) is one number over the padding; crops pass."""
    m = only(asks)
    pads = _pads(op, m.rank, context)
    if _only_crops(pads):
        return [Step(asks={0: _widened(m, pads) if any(m.shape[a] > 1 for a in pads) else m})]
    if not _check_pad(op, m, pads):
        return [Step(asks={0: m})]
    old = _fill(op, context)
    m = m.full((), m.shape)
    full = Map(*np.broadcast_arrays(m.scale, m.shift))
    new = _one_number(_outside(full.scale * old + full.shift, pads), op)
    return [Step(asks={0: _inner(full, pads)}, constants=_new_fill(old, new))]


def pad_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """Pad(m(x), c) = m(Pad(x, c')) with m(c') = c; padded channels carry the identity."""
    m = data_only(op, carried)
    pads = _pads(op, m.rank, context)
    if _only_crops(pads):
        return [Step(gives={0: _inner(m, {a: (-b, -e) for a, (b, e) in pads.items()})})]
    if not _check_pad(op, m, pads):
        return [Step(gives={0: m})]
    old = _fill(op, context)
    full = Map(*np.broadcast_arrays(m.scale, m.shift))
    varied = {a: p for a, p in pads.items() if full.shape[a] > 1}
    if varied and len(varied) < len(pads):
        raise MapRefusedError("it pads the channel axis and others", op)
    if varied:
        widths = [varied.get(i, (0, 0)) for i in range(m.rank)]
        return [
            Step(
                gives={
                    0: Map(
                        np.pad(full.scale, widths, constant_values=1.0),
                        np.pad(full.shift, widths, constant_values=0.0),
                    )
                }
            )
        ]
    if old == 0 and not m.has_shift:
        return [Step(gives={0: m})]
    if (m.scale == 0).any():
        raise MapRefusedError("a zero scale cannot be undone in its fill value", op)
    new = _one_number((old - full.shift) / full.scale, op)
    return [Step(gives={0: m}, constants=_new_fill(old, new))]


POOL = Rule(pool_backward, pool_forward)
REDUCE = Rule(reduce_backward, reduce_forward)
RESIZE = Rule(resize_backward, resize_forward)
PAD = Rule(pad_backward, pad_forward)
