"""Pools over windows, and over all of the spatial axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, Outputs, one, operator
from bnpass.verdict.evaluator.windows import Pads, grid_of, padded, pads_of, windows


def _grid(
    call: Invocation, extent: tuple[int, ...]
) -> tuple[list[int], list[int], list[int], Pads, Pads]:
    """(kernel, strides, dilations, pads, what ceil_mode adds behind them)."""
    kernel = list(call.attrs["kernel_shape"])
    strides, dilations = grid_of(call, len(kernel))
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = pads_of(call, extent, span, strides)
    extra = []
    for n, s, (a, b), step in zip(extent, span, pads, strides, strict=True):
        rest = (n + a + b - s) % step
        add = step - rest if call.attrs.get("ceil_mode", 0) and rest else 0
        # A last window that would start behind the value and its front pad is left out.
        starts = (n + a + b + add - s) // step * step
        extra.append((0, 0 if starts >= n + a else add))
    return kernel, strides, dilations, pads, extra


def _window_axes(kernel: list[int]) -> tuple[int, ...]:
    return tuple(range(-len(kernel), 0))


@operator("MaxPool")
def _max_pool(call: Invocation) -> Outputs:
    if len(call.wanted) > 1 and call.wanted[1]:
        raise call.refuse("the output Indices")
    x = call[0]
    kernel, strides, dilations, pads, extra = _grid(call, x.shape[2:])
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    x = padded(padded(x, pads, low), extra, low)
    return (windows(x, kernel, strides, dilations).max(_window_axes(kernel)),)


@operator("AveragePool")
@one
def _average_pool(call: Invocation) -> Any:
    x = call[0]
    kernel, strides, dilations, pads, extra = _grid(call, x.shape[2:])
    counted = np.ones((1, 1, *x.shape[2:]))
    counted = padded(counted, pads, 1.0 if call.attrs.get("count_include_pad", 0) else 0.0)
    x, counted = padded(padded(x, pads), extra), padded(counted, extra)
    axes = _window_axes(kernel)
    sums = windows(x, kernel, strides, dilations).sum(axes)
    return sums / windows(counted, kernel, strides, dilations).sum(axes)


@operator("LpPool")
@one
def _lp_pool(call: Invocation) -> Array:
    x, p = call[0], int(call.attrs.get("p", 2))
    kernel, strides, dilations, pads, extra = _grid(call, x.shape[2:])
    x = padded(padded(x, pads), extra)
    found = (np.abs(windows(x, kernel, strides, dilations)) ** p).sum(_window_axes(kernel))
    return np.asarray(found ** (1 / p))


def _over_all(reduce: Callable[..., Array]) -> Callable[[Invocation], Array]:
    return lambda call: reduce(call[0], axis=tuple(range(2, call[0].ndim)), keepdims=True)


operator("GlobalAveragePool")(one(_over_all(np.mean)))
operator("GlobalMaxPool")(one(_over_all(np.max)))


@operator("GlobalLpPool")
@one
def _global_lp(call: Invocation) -> Array:
    x, p = call[0], int(call.attrs.get("p", 2))
    axes = tuple(range(2, x.ndim))
    return np.asarray((np.abs(x) ** p).sum(axes, keepdims=True) ** (1 / p))
