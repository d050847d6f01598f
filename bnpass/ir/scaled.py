"""A large weight times factors, worked out piece by piece: in float64, rounded once.

The whole weight in float64 would take twice its memory, and every pass over it a trip to main
memory; a piece stays in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bnpass.ir.affine import all_finite, infinite_channel
from bnpass.ir.graph import Constant

LARGE = 1 << 17
"""Entries from which on a weight is worked out in pieces."""

_PIECE = 1 << 16  # entries: 0.5 MiB in float64


@dataclass(frozen=True)
class Scaled:
    """``constant.reshape(shape)`` times every factor.

    Attributes:
        constant: the weight.
        shape: as many entries as the constant has, in its order.
        factors: float64, each of the rank of ``shape`` and broadcastable to it.
    """

    constant: Constant
    shape: tuple[int, ...]
    factors: tuple[np.ndarray, ...]

    def pieces(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        """The result in its order, flat, some rows at a time; a piece lives until the next one.

        Raises:
            OverflowError: the rounded numbers are not finite.
        """
        rows, width = self.shape[0], math.prod(self.shape[1:])
        step = max(1, min(rows, _PIECE // max(width, 1)))
        exact = np.empty((step, *self.shape[1:]))
        start = 0
        for part in self.constant.pieces(step * width):
            count = part.size // width
            block = exact[:count]
            block[...] = part.reshape(block.shape)
            for factor in self.factors:
                block *= factor[start : start + count] if len(factor) > 1 else factor
            with np.errstate(over="ignore"):
                rounded = block.astype(dtype)
            if not all_finite(rounded):
                channel = self._channel(rounded, start)
                raise OverflowError(f"{self.constant.name!r} overflows", channel)
            yield rounded.reshape(-1)
            start += count

    def _channel(self, rounded: np.ndarray, start: int) -> int | None:
        """At which channel a piece from row ``start`` on is not finite."""
        rows = any(len(factor) > 1 for factor in self.factors)
        found = infinite_channel(rounded)
        return start + int(np.argwhere(~np.isfinite(rounded))[0][0]) if rows else found

    def rounded(self, dtype: np.dtype) -> np.ndarray:
        """The result as one array of the constant's shape."""
        whole = np.empty(math.prod(self.shape), dtype)
        end = 0
        for piece in self.pieces(dtype):
            whole[end : end + piece.size] = piece
            end += piece.size
        return whole.reshape(self.constant.shape)
