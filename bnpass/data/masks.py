"""Padding: how a mask lies on a value inside of a network, and signs of padding without one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any

import numpy as np

from bnpass.data.protocol import Arguments
from bnpass.data.trees import arrays

log = logging.getLogger("bnpass.data")

_SHARE = 0.3  # of the samples that end in the same constant, at least
_LOOKED_AT = 256  # samples
_RANKS = (2, 3)
_LEAST = 8  # samples from which on that says something


class Fit(Enum):
    """How a mask lies on a value."""

    ALL = "all"
    """The positions are gone (pooled), or others: all that is left counts."""
    LEADING = "leading"
    """Its axes are the value's first ones, without the channels."""
    FLAT = "flat"
    """The value has them as one axis."""


def fit(mask: tuple[int, ...], value: tuple[int, ...], axis: int = 1) -> Fit:
    """How a mask lies on a value; one whose positions are neither kept nor gone is warned about.

    Args:
        mask: its shape ``(n, positions...)``.
        value: the shape of what a norm gets.
        axis: of the channels in it.
    """
    channels = axis % len(value)
    positions = tuple(size for number, size in enumerate(value) if number != channels)
    if positions[: len(mask)] == mask:
        return Fit.LEADING
    if positions == (math.prod(mask),):
        return Fit.FLAT
    if positions != mask[:1]:
        _say_unfit(mask[1:], value[1:])
    return Fit.ALL


@cache  # once for all batches
def _say_unfit(mask: tuple[int, ...], value: tuple[int, ...]) -> None:
    log.warning("a mask of %s does not fit a value of %s a sample: all of its positions count in "
                "statistics", list(mask), list(value))


def padded(array: Any) -> float:
    """The share of positions that look like padding: 0 where nothing does.

    Sequences ``(n, t, features)``, ``(n, features, t)`` or, as whole numbers, ``(n, t)`` that end,
    many of them and at different lengths, in the same constant.
    """
    x = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    if len(x.shape) not in _RANKS or len(x) < _LEAST or (x.ndim == 2 and x.dtype.kind not in "iu"):
        return 0.0
    return max(_trailing(x if axis == 1 else x.swapaxes(1, 2)) for axis in range(1, x.ndim))


def _trailing(x: np.ndarray[Any, Any]) -> float:
    """As :func:`padded`, of positions on axis 1."""
    flat = x.reshape(*x.shape[:2], -1)
    ends = flat[:, -1, 0]
    values, counts = np.unique(ends, return_counts=True)
    constant = (flat == values[counts.argmax()]).all(2)
    length = np.logical_and.accumulate(constant[:, ::-1], axis=1).sum(1)
    if flat.shape[1] < 2 or np.mean(length >= 2) < _SHARE or np.ptp(length) < 2:
        return 0.0
    return float(length.mean() / flat.shape[1])


def warn_of_padding(example: Callable[[int], Arguments]) -> None:
    """Log that the inputs look padded, where no mask says which positions count.

    Args:
        example: gives so many samples.
    """
    few = example(2)
    if few.mask is not None or not any(len(x.shape) in _RANKS for x in arrays(few.trees)):
        return  # and no image is decoded for nothing
    share = max(padded(array) for array in arrays(example(_LOOKED_AT).trees))
    if share:
        log.warning("%.0f %% of the positions look like padding (a constant at the ends of "
                    "samples of different lengths), and count in the statistics of BatchNorms: "
                    "--mask NAME names the array that says which count", 100 * share)
