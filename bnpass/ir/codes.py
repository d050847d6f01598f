"""The numbers of a fold into a quantised weight: codes, scales and zero points.

A weight is ``(code - zero) * scale``. Its scale takes the size of the map's in, its codes the
sign; where a code has no negative in its type all codes are counted from the other end, which is
exact as well: ``c' = max + min - c`` and ``z' = max + min - z``. Where the map's scale is 0 all
codes are at the zero point and the scale stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnpass.ir.affine import Map


@dataclass(frozen=True)
class Codes:
    """A quantised weight.

    Attributes:
        codes: float64 whole numbers, of the weight's shape.
        scale: float64, of the weight's rank: 1 or the number of channels along ``axis``.
        zero: the same.
        kind: the codes' own type.
        axis: along which the scales lie.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    kind: np.dtype
    axis: int

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        info = np.iinfo(self.kind)
        return int(info.min), int(info.max)


def mapped_codes(old: Codes, m: Map, narrow: np.dtype) -> Codes:
    """The codes of ``m`` of a weight; a shift is rounded to the nearest step.

    Args:
        old: the weight.
        m: a map along its channels; with a shift only where there is room for it (int32).
        narrow: the type that the scale is stored in.
    """
    axis = m.axes[0] if m.axes else old.axis
    size = np.abs(m.scale)
    scale = (old.scale * np.where(size == 0, 1.0, size)).astype(narrow).astype(np.float64)
    flipped = np.broadcast_to(m.scale < 0, scale.shape)
    codes, zero = np.broadcast_arrays(old.codes, old.zero)[0], old.zero
    low, high = old.bounds
    turned = 2 * zero - codes
    total = low + high
    if ((turned < low) | (turned > high))[np.broadcast_to(flipped, codes.shape)].any():
        turned = total - codes
        zero = np.where(flipped, total - zero, zero)
    codes = np.where(flipped, turned, codes)
    codes = np.where(m.scale == 0, np.broadcast_to(zero, codes.shape), codes)
    if m.has_shift:
        codes = codes + np.rint(m.shift / scale)
    return Codes(codes, scale, zero, old.kind, axis)


def rounded_codes(weight: np.ndarray, like: Codes, narrow: np.dtype) -> np.ndarray:
    """The codes that QuantizeLinear makes of a weight, computed in the weight's type."""
    low, high = like.bounds
    steps = np.rint(weight.astype(narrow) / like.scale.astype(narrow))
    return np.asarray(np.clip(steps.astype(np.float64) + like.zero, low, high))


def mapped_weight(
    weight: np.ndarray, new: Codes, m: Map, narrow: np.dtype
) -> np.ndarray:
    """``m`` of a weight that is quantised afterwards: every code is that of ``new``.

    A number whose code would be another one, by rounding, is what its code stands for.
    """
    moved = (weight * m.scale).astype(narrow).astype(np.float64)
    wrong = rounded_codes(moved, new, narrow) != new.codes
    return np.asarray(np.where(wrong, (new.codes - new.zero) * new.scale, moved))
