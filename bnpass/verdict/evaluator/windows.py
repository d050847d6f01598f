"""What convolutions and pools share: padding by auto_pad, and the windows of a padded value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation

Pads = list[tuple[int, int]]


def per_axis(call: Invocation, name: str, axes: int, default: int = 1) -> list[int]:
    """An attribute with one number an axis."""
    return list(call.attrs.get(name) or [default] * axes)


def grid_of(call: Invocation, axes: int) -> tuple[list[int], list[int]]:
    """(strides, dilations) of so many spatial axes."""
    return per_axis(call, "strides", axes), per_axis(call, "dilations", axes)


def pads_of(
    call: Invocation, extent: Sequence[int], span: Sequence[int], strides: Sequence[int]
) -> Pads:
    """(before, behind) of every spatial axis.

    Args:
        call: with ``auto_pad`` or ``pads``.
        extent: sizes of the spatial axes.
        span: sizes of the dilated kernel.
        strides: of the windows.
    """
    axes, auto = len(extent), call.attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, width, stride in zip(extent, span, strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + width - size, 0)
            low, high = total // 2, total - total // 2
            pads.append((low, high) if auto == "SAME_UPPER" else (high, low))
        return pads
    flat = [0] * (2 * axes) if auto == "VALID" else per_axis(call, "pads", 2 * axes, 0)
    return [(flat[i], flat[i + axes]) for i in range(axes)]


def padded(x: Array, pads: Pads, value: float = 0.0) -> Array:
    """Pad the spatial axes (all but the first two); negative pads crop."""
    if any(p < 0 for pair in pads for p in pair):
        ends = zip(pads, x.shape[2:], strict=True)
        cut = [slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in ends]
        x = x[(slice(None), slice(None), *cut)]
        pads = [(max(a, 0), max(b, 0)) for a, b in pads]
    if not any(p for pair in pads for p in pair):
        return x
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """All windows of a padded value: (N, C, *spatial) -> (N, C, *positions, *kernel), a view."""
    axes = tuple(range(2, x.ndim))
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    if any(n < s for n, s in zip(x.shape[2:], span, strict=True)):
        raise ValueError(f"a kernel of {span} does not fit into {x.shape[2:]}")
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=axes)
    steps = (*(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    found: Array = view[(slice(None), slice(None), *steps)]
    return found
