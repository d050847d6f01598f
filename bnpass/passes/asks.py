"""What the readers of a value ask of it, made one map; NaN entries ask nothing."""

from __future__ import annotations

import numpy as np

from bnpass.ir.affine import Map
from bnpass.rules import MapRefusedError


def merged_asks(maps: list[Map], value: str) -> Map:
    """One map that does what every reader asks; NaN entries ask nothing."""
    merged = maps[0]
    for m in maps[1:]:
        if m.equals(merged):
            continue
        pair = np.broadcast_arrays(merged.scale, merged.shift, m.scale, m.shift)
        known = ~np.isnan(pair[0]) & ~np.isnan(pair[2])
        if (known & ((pair[0] != pair[2]) | (pair[1] != pair[3]))).any():
            raise MapRefusedError(f"the readers of {value!r} need different maps")
        empty = np.isnan(pair[0])
        merged = Map(np.where(empty, pair[2], pair[0]), np.where(empty, pair[3], pair[1]))
    return merged


def filled(m: Map) -> Map:
    """NaN entries become the identity."""
    if not m.has_gaps:
        return m
    return Map(np.where(np.isnan(m.scale), 1.0, m.scale), np.where(np.isnan(m.shift), 0.0, m.shift))


def settle_unread(m: Map) -> Map:
    """NaN entries become what the others along an axis agree on, else the identity."""
    if not m.has_gaps:
        return m
    scale, shift = np.broadcast_arrays(m.scale, m.shift)
    for axis in range(m.rank):
        ends = [_agreed(a, axis) for a in (scale, shift)]
        if ends[0] is not None and ends[1] is not None:
            scale, shift = ends[0], ends[1]
    return filled(Map(scale, shift))


def _agreed(a: np.ndarray, axis: int) -> np.ndarray | None:
    """One entry along an axis where all that are not NaN are equal; None where they are not."""
    low = np.fmin.reduce(a, axis, keepdims=True)
    high = np.fmax.reduce(a, axis, keepdims=True)
    return low if np.array_equal(low, high, equal_nan=True) else None
