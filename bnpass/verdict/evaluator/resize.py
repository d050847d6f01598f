"""Resize and Upsample: one matrix of weights an axis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, one, operator


@operator("Resize")
@one
def _resize(call: Invocation) -> Array:
    x = call[0]
    if call.attrs.get("antialias", 0):
        raise call.refuse("antialias")
    old = call.opset < 11
    scales, sizes = (call.get(1), None) if old else (call.get(2), call.get(3))
    axes = [a % x.ndim for a in call.attrs.get("axes") or range(x.ndim)]
    region = None if old else call.get(1)
    style = "asymmetric" if old else call.attrs.get("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if old else call.attrs.get("nearest_mode", "round_prefer_floor")
    factors, targets = _extents(call, x, axes, scales, sizes)
    for i, axis in enumerate(axes):
        span = (0.0, 1.0) if region is None or not region.size else (
            float(region[i]), float(region[i + len(axes)]))  # fmt: skip
        if targets[i] == x.shape[axis] and factors[i] == 1 and style != "tf_crop_and_resize":
            continue
        places = _places(style, targets[i], x.shape[axis], factors[i], span)
        x = _along(call, x, axis, places, nearest, style)
    return x


@operator("Upsample")
@one
def _upsample(call: Invocation) -> Array:
    x = call[0]
    given = call.get(1)
    scales = np.asarray(call.attrs["scales"]) if given is None else given
    for axis, scale in enumerate(scales.tolist()):
        size = int(np.floor(x.shape[axis] * scale))
        if scale != 1:
            places = np.arange(size) / scale
            x = _along(call, x, axis, places, "floor", "asymmetric")
    return x


def _extents(
    call: Invocation, x: Array, axes: list[int], scales: Array | None, sizes: Array | None
) -> tuple[list[float], list[int]]:
    """(scale, new size) of every resized axis."""
    have = [x.shape[a] for a in axes]
    if sizes is None or not sizes.size:
        if scales is None:
            raise call.refuse("neither scales nor sizes")
        factors = [float(np.float32(s)) for s in scales.reshape(-1)]
        return factors, [int(np.floor(n * f)) for n, f in zip(have, factors, strict=True)]
    wanted = [int(s) for s in sizes.reshape(-1)]
    policy = call.attrs.get("keep_aspect_ratio_policy", "stretch")
    factors = [w / n for w, n in zip(wanted, have, strict=True)]
    if policy != "stretch":
        factor = min(factors) if policy == "not_larger" else max(factors)
        return [factor] * len(axes), [int(np.floor(n * factor + 0.5)) for n in have]
    return factors, wanted


def _places(style: str, size: int, had: int, scale: float, span: tuple[float, float]) -> Array:
    """For each new entry its place among the old ones."""
    i = np.arange(size, dtype=np.float64)
    if style == "align_corners":
        return i * (had - 1) / (size - 1) if size > 1 else np.zeros(size)
    if style == "asymmetric":
        return i / scale
    if style == "pytorch_half_pixel" and size == 1:
        return np.zeros(1)
    if style == "half_pixel_symmetric":
        adjusted = size / (scale * had)
        return had / 2 * (1 - adjusted) + (i + 0.5) / scale - 0.5
    if style == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    if style == "tf_crop_and_resize":
        start, end = span
        if size == 1:
            return np.array([0.5 * (start + end) * (had - 1)])
        return start * (had - 1) + i * (end - start) * (had - 1) / (size - 1)
    return (i + 0.5) / scale - 0.5


_ROUNDS: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda p: np.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: np.floor(p + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _along(call: Invocation, x: Array, axis: int, places: Array, nearest: str, style: str) -> Array:
    had, mode = x.shape[axis], call.attrs.get("mode", "nearest")
    if mode == "nearest":
        weights = _spread(_ROUNDS[nearest](places)[:, None], np.ones((len(places), 1)), had)
    elif mode in ("linear", "bilinear", "trilinear"):
        floor = np.floor(places)
        part = places - floor
        index = np.stack([floor, floor + 1], 1)
        weights = _spread(index, np.stack([1 - part, part], 1), had)
    else:
        weights = _cubic(call, places, had)
    y = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    if style == "tf_crop_and_resize":
        outside = (places < 0) | (places > had - 1)
        at = [slice(None)] * x.ndim
        at[axis] = np.flatnonzero(outside)  # type: ignore[call-overload]
        y[tuple(at)] = float(call.attrs.get("extrapolation_value", 0.0))
    return y


def _spread(index: Array, weights: Array, had: int) -> Array:
    """A matrix (new, old) from the old entries that each new one reads; edges are repeated."""
    matrix = np.zeros((len(index), had))
    rows = np.repeat(np.arange(len(index)), index.shape[1])
    columns = np.clip(index, 0, had - 1).astype(np.int64).reshape(-1)
    np.add.at(matrix, (rows, columns), weights.reshape(-1))
    return matrix


def _cubic(call: Invocation, places: Array, had: int) -> Array:
    a = float(np.float32(call.attrs.get("cubic_coeff_a", -0.75)))
    floor = np.floor(places)
    index = np.stack([floor + k for k in (-1, 0, 1, 2)], 1)
    distance = np.abs(places[:, None] - index)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    if call.attrs.get("exclude_outside", 0):
        weights = np.where((index < 0) | (index >= had), 0.0, weights)
        weights = weights / weights.sum(1, keepdims=True)
    return _spread(index, weights, had)
