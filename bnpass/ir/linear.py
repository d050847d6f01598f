"""A value as a linear function of another one: a kernel indexed by offset from the root.

``y[p] = bias + sum over o of taps[o] @ root[p * stride + o]``, where the root is zero outside of
itself: all branches on one root see the same zeros, so their kernels add up whatever their size and
padding. Channels lie in groups as in ONNX's Conv: a tap is (out, in/group). Where numbers are not
asked for, taps and bias are None: the form alone says what an operator would cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Offset = tuple[int, ...]
Array = np.ndarray | None


class NotLinearError(Exception):
    """Two linear functions do not make one; says why."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear function of a root.

    Attributes:
        taps: (out, in/group) float64 by offset; None where numbers are not asked for.
        bias: (out,) float64, or None likewise.
        biased: whether anything is added.
        channels: (out, in).
        group: groups of channels.
        stride: of the root's positions, one for each axis of the window.
        tail: how far the last position may read beyond the root, less the largest offset.
    """

    taps: Mapping[Offset, Array]
    bias: Array
    biased: bool
    channels: tuple[int, int]
    group: int
    stride: tuple[int, ...]
    tail: tuple[int, ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether every position reads that of the root alone."""
        still = all(s == 1 for s in self.stride) and not any(self.tail)
        return still and all(not any(o) for o in self.taps)


def pointwise(scale: Array, shift: Array, n: int, axes: int, *, biased: bool) -> Linear:
    """A per-channel map of n channels, of a value with so many axes besides."""
    tap = None if scale is None else scale.reshape(n, 1)
    zero = (0,) * axes
    return Linear({zero: tap}, shift, biased, (n, n), n, (1,) * axes, zero)


def identity(n: int, axes: int, *, numbers: bool) -> Linear:
    """The root itself."""
    ones, zeros = (np.ones(n), np.zeros(n)) if numbers else (None, None)
    return pointwise(ones, zeros, n, axes, biased=False)


def regrouped(tap: Array, old: int, new: int) -> Array:
    """A tap of ``old`` groups as one of ``new``, which divides ``old``."""
    if tap is None or old == new:
        return tap
    parts, out, inner = old // new, tap.shape[0] // old, tap.shape[1]
    wide = np.zeros((new, parts, out, parts, inner))
    narrow = tap.reshape(new, parts, out, inner)
    for i in range(parts):
        wide[:, i, :, i] = narrow[:, i]
    return wide.reshape(tap.shape[0], parts * inner)


Extent = tuple[int | None, ...]
"""Sizes of a root along the axes of the windows, None where they are not known."""


def _check_alike(parts: Sequence[Linear], extent: Extent) -> None:
    """Raise NotLinearError unless all functions have as many positions, whatever is known."""
    first = parts[0]
    for part in parts[1:]:
        if part.stride != first.stride or part.channels[1] != first.channels[1]:
            raise NotLinearError("its branches have other strides")
        for a, b, s, n in zip(first.tail, part.tail, first.stride, extent, strict=True):
            if a != b and (n is None or (n - 1 + a) // s != (n - 1 + b) // s):
                raise NotLinearError("its branches end at other places")


def added(terms: Sequence[Linear], signs: Sequence[float], extent: Extent) -> Linear:
    """A sum of functions of one root of that extent.

    Raises:
        NotLinearError: their strides, sizes or channels differ.
    """
    first = terms[0]
    _check_alike(terms, extent)
    if any(term.channels != first.channels for term in terms):
        raise NotLinearError("its branches have other channels")
    group = math.gcd(*(term.group for term in terms))
    taps: dict[Offset, Array] = {}
    for term, sign in zip(terms, signs, strict=True):
        for offset, tap in term.taps.items():
            new = regrouped(tap, term.group, group)
            old = taps.get(offset)
            taps[offset] = None if new is None else sign * new if old is None else old + sign * new
    bias: Array = None
    if first.bias is not None:
        bias = sum(
            (s * t.bias for t, s in zip(terms, signs, strict=True) if t.bias is not None),
            np.zeros(first.channels[0]),
        )
    biased = any(term.biased for term in terms)
    return replace(first, taps=taps, bias=bias, biased=biased, group=group)


def composed(inner: Linear, outer: Linear, *, padded: bool) -> Linear:
    """``outer`` behind ``inner``.

    Args:
        inner, outer: the functions.
        padded: whether zeros are put around what ``outer`` reads.

    Raises:
        NotLinearError: those zeros are not what ``inner`` makes of zeros around the root.
    """
    if padded and inner.biased:
        raise NotLinearError("its padding stands behind a bias")
    if padded and not inner.is_pointwise:
        raise NotLinearError("its padding stands behind a wider or strided window")
    group = math.gcd(inner.group, outer.group)
    taps: dict[Offset, Array] = {}
    for far, b in outer.taps.items():
        for near, a in inner.taps.items():
            offset = tuple(f * s + n for f, s, n in zip(far, inner.stride, near, strict=True))
            left, right = regrouped(b, outer.group, group), regrouped(a, inner.group, group)
            new = _product(left, right, group)
            old = taps.get(offset)
            taps[offset] = new if old is None or new is None else old + new
    steps = zip(inner.tail, outer.tail, inner.stride, strict=True)
    return Linear(
        taps,
        _carried_bias(inner, outer),
        inner.biased or outer.biased,
        (outer.channels[0], inner.channels[1]),
        group,
        tuple(a * b for a, b in zip(inner.stride, outer.stride, strict=True)),
        tuple(a + b * s for a, b, s in steps),
    )


def _product(b: Array, a: Array, group: int) -> Array:
    if a is None or b is None:
        return None
    left = b.reshape(group, b.shape[0] // group, -1)
    right = a.reshape(group, a.shape[0] // group, -1)
    return np.asarray(np.matmul(left, right)).reshape(b.shape[0], -1)


def _carried_bias(inner: Linear, outer: Linear) -> Array:
    if inner.bias is None or outer.bias is None:
        return None
    held = inner.bias.reshape(outer.group, -1, 1)
    total = outer.bias.copy()
    for tap in outer.taps.values():
        assert tap is not None
        rows = tap.reshape(outer.group, tap.shape[0] // outer.group, -1)
        total += np.matmul(rows, held).reshape(-1)
    return total


def stacked(parts: Sequence[Linear], extent: Extent) -> Linear:
    """Outputs side by side along the channels, of one root of that extent.

    Raises:
        NotLinearError: their strides or sizes differ.
    """
    first = parts[0]
    _check_alike(parts, extent)
    inputs = first.channels[1]
    outs = [p.channels[0] for p in parts]
    offsets = dict.fromkeys(o for p in parts for o in p.taps)
    taps = {o: _rows([_dense(p, o) for p in parts], outs, inputs) for o in offsets}
    numbers = [p.bias for p in parts if p.bias is not None]
    bias = np.concatenate(numbers) if len(numbers) == len(parts) else None
    biased = any(p.biased for p in parts)
    return Linear(taps, bias, biased, (sum(outs), inputs), 1, first.stride, first.tail)


def _dense(part: Linear, offset: Offset) -> Array:
    if offset in part.taps:
        return regrouped(part.taps[offset], part.group, 1)
    return None if part.bias is None else np.zeros(part.channels)


def _rows(parts: Sequence[Array], outs: Sequence[int], inputs: int) -> Array:
    found = [p for p in parts if p is not None]
    if len(found) < len(parts):
        return None
    assert [p.shape for p in found] == [(n, inputs) for n in outs]
    return np.concatenate(found)


# --- one operator


@dataclass(frozen=True)
class KernelWindow:
    """The window of the convolution that a linear function is.

    Attributes:
        low: the offset of its first tap.
        size, dilation: of the kernel.
        pads: as ONNX has them: all begins, then all ends.
    """

    low: Offset
    size: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]


def window_of(f: Linear) -> KernelWindow:
    """The smallest window that has all taps in it."""
    axes = [_axis({o[a] for o in f.taps}, f.tail[a]) for a in range(len(f.tail))]
    lows, sizes, dilations, ends = zip(*axes, strict=True) if axes else ((), (), (), ())
    return KernelWindow(lows, sizes, dilations, (*(-low for low in lows), *ends))


def _axis(offsets: Iterable[int], tail: int) -> tuple[int, int, int, int]:
    """(first offset, entries, dilation, padding at the end) along one axis."""
    found = set(offsets)
    low, high = min(*found, 0), max(*found, -tail)
    dilation = math.gcd(*(o - low for o in (*found, high))) or 1
    return low, (high - low) // dilation + 1, dilation, high + tail


def kernel_of(f: Linear, window: KernelWindow) -> np.ndarray:
    """W (out, in/group, ...) of the convolution."""
    out, inputs = f.channels
    kernel = np.zeros((out, inputs // f.group, *window.size))
    for offset, tap in f.taps.items():
        steps = zip(offset, window.low, window.dilation, strict=True)
        place = [(o - low) // d for o, low, d in steps]
        kernel[(slice(None), slice(None), *place)] = tap  # type: ignore[index]
    return kernel


def weights_of(f: Linear) -> int:
    """How many weights an operator that computes the function has, its bias not among them."""
    out, inputs = f.channels
    return out * (inputs // f.group) * math.prod(window_of(f).size)


def attributes_of(f: Linear, window: KernelWindow) -> dict[str, Any]:
    """Attributes of the convolution."""
    return {
        "kernel_shape": list(window.size),
        "strides": list(f.stride),
        "dilations": list(window.dilation),
        "pads": list(window.pads),
        "group": f.group,
    }
