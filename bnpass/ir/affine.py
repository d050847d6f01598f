"""The algebra: a per-channel affine map y = scale * x + shift, in float64.

A map belongs to a value of known rank. Its two arrays have that rank, and along each axis either
the value's size or 1 (the same for all entries of that axis). So the channel axis is an explicit
index map: whatever an operator does to the entries of a value (transpose, reshape, slice, concat)
is done to the two arrays, and the map stays right where "axis 1" would have become wrong.

Source: Ioffe & Szegedy 2015 (arXiv:1502.03167), Algorithm 2: at inference a BatchNorm is
``scale = gamma / sqrt(var + eps)``, ``shift = beta - scale * mean``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def some(mask: np.ndarray) -> bool:
    """Whether any entry is true or not zero; several times faster than ``mask.any()``."""
    return bool(np.count_nonzero(mask))


def all_finite(a: np.ndarray) -> bool:
    """Whether no entry is infinite or NaN."""
    return bool(np.count_nonzero(np.isfinite(a)) == a.size)


def infinite_channel(a: np.ndarray) -> int | None:
    """The first channel that holds an infinity or NaN: along the axis where the fewest do."""
    bad = ~np.isfinite(a)
    best: np.ndarray | None = None
    for axis in range(bad.ndim):
        if bad.shape[axis] > 1:
            places = np.flatnonzero(bad.any(axis=tuple(i for i in range(bad.ndim) if i != axis)))
            if places.size and (best is None or places.size < best.size):
                best = places
    return None if best is None else int(best[0])


def at_channel(channel: int | None) -> str:
    """`` (channel 3)`` for a message, or nothing where it is not known."""
    return "" if channel is None else f" (channel {channel})"


@dataclass(frozen=True, eq=False)
class Map:
    """y = scale * x + shift.

    Attributes:
        scale: float64, rank of the value, every dimension 1 or the value's size.
        shift: the same, broadcastable against ``scale``.
    """

    scale: np.ndarray
    shift: np.ndarray

    @staticmethod
    def identity(rank: int) -> Map:
        """The map that changes nothing, for a value of that rank."""
        return Map(np.ones((1,) * rank), np.zeros((1,) * rank))

    @staticmethod
    def along(axis: int, rank: int, scale: np.ndarray, shift: np.ndarray) -> Map:
        """A map from two vectors of shape (C,) along one axis of a value."""
        shape = [1] * rank
        shape[axis] = -1
        return Map(
            np.asarray(scale, np.float64).reshape(shape),
            np.asarray(shift, np.float64).reshape(shape),
        )

    @staticmethod
    def many(scale: np.ndarray, shift: np.ndarray) -> list[Map]:
        """The maps of two arrays (n, *shape), with what people ask of each found for all at once.

        ``shape`` is that of one map. A NaN or an infinity is kept: see :attr:`is_finite`.
        """
        shape = scale.shape[1:]
        one, two = (a.reshape(len(a), -1) for a in (scale, shift))
        columns = {
            "is_finite": (np.isfinite(one) & np.isfinite(two)).all(1),
            "has_scale": (one != 1).any(1),
            "has_shift": (two != 0).any(1),
            "has_gaps": np.isnan(one).any(1),
            "is_monotone": (one >= 0).all(1),
        }
        facts = zip(*(column.tolist() for column in columns.values()), strict=True)
        same = {"shape": shape, "axes": tuple([i for i, n in enumerate(shape) if n != 1])}
        maps = []
        for a, b, row in zip(scale, shift, facts, strict=True):
            m = object.__new__(Map)
            m.__dict__.update(zip(columns, row, strict=True), scale=a, shift=b, **same)
            maps.append(m)
        return maps

    @property
    def rank(self) -> int:
        """The rank of the value that the map belongs to."""
        return self.scale.ndim

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Along each axis the value's size where the map varies, else 1."""
        a, b = self.scale.shape, self.shift.shape
        return a if a == b else np.broadcast_shapes(a, b)

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """The axes along which the map varies."""
        return tuple([i for i, n in enumerate(self.shape) if n != 1])

    @cached_property
    def has_scale(self) -> bool:
        """Whether any entry is multiplied by something else than 1."""
        return some(self.scale != 1)

    @cached_property
    def has_shift(self) -> bool:
        """Whether anything is added to any entry."""
        return some(self.shift)

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return not (self.has_scale or self.has_shift)

    @cached_property
    def is_finite(self) -> bool:
        """Whether every scale and shift is a finite number."""
        return all_finite(self.scale) and all_finite(self.shift)

    @cached_property
    def has_gaps(self) -> bool:
        """Whether some entries are NaN: they ask for nothing."""
        return some(np.isnan(self.scale))

    @cached_property
    def is_monotone(self) -> bool:
        """Whether no scale is negative, so that the map commutes with max and min."""
        return not some(~(self.scale >= 0))

    def equals(self, other: Map) -> bool:
        """Whether both maps do the same to every entry."""
        return bool(
            self.rank == other.rank
            and _broadcast_equal(self.scale, other.scale)
            and _broadcast_equal(self.shift, other.shift)
        )

    def after(self, inner: Map) -> Map:
        """The composition x -> self(inner(x))."""
        return Map(self.scale * inner.scale, self.scale * inner.shift + self.shift)

    def of(self, array: np.ndarray) -> np.ndarray:
        """The map applied to a value's numbers."""
        return np.asarray(self.scale * array + self.shift)

    def scale_only(self) -> Map:
        """The same map without its shift."""
        return Map(self.scale, np.zeros((1,) * self.rank))

    def shift_only(self) -> Map:
        """The same map without its scale."""
        return Map(np.ones((1,) * self.rank), self.shift)

    def with_shift(self, shift: np.ndarray) -> Map:
        """The same scale with another shift."""
        return Map(self.scale, shift)

    def each(self, move: Callable[[np.ndarray], np.ndarray]) -> Map:
        """Do the same to both arrays: how structure operators move a map."""
        return Map(move(self.scale), move(self.shift))

    def full(self, axes: Iterable[int], shape: tuple[int, ...]) -> Map:
        """Both arrays expanded to the sizes of ``shape`` along ``axes``."""
        axes = set(axes)

        def expand(a: np.ndarray) -> np.ndarray:
            return np.broadcast_to(a, [shape[i] if i in axes else n for i, n in enumerate(a.shape)])

        return self.each(expand)

    def compact(self) -> Map:
        """The same map, every axis along which it does not vary reduced to size 1."""
        return self.each(_compact)

    def varies_along(self, axis: int) -> bool:
        """Whether the map varies along no other axis."""
        return not self.axes or self.axes == (axis,)

    def vectors(self, axis: int, size: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(scale, shift) of shape (size,) along ``axis``; None if the map varies elsewhere."""
        if not self.varies_along(axis):
            return None
        return _vector(self.scale, size), _vector(self.shift, size)


def _vector(a: np.ndarray, size: int) -> np.ndarray:
    flat = a.reshape(-1)
    return flat if flat.size == size else np.broadcast_to(flat, (size,))


def _broadcast_equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a is b:
        return True
    if a.shape != b.shape and any(
        m != n and 1 not in (m, n) for m, n in zip(a.shape, b.shape, strict=True)
    ):
        return False
    return bool((a == b).all())


def _compact(a: np.ndarray) -> np.ndarray:
    for axis, size in enumerate(a.shape):
        if size > 1:
            first = a.take([0], axis)
            if (a == first).all():
                a = first
    return a
