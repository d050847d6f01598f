"""ONNX Resize (19) in all its modes, axis by axis; torch's own kernel where that is the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnpass.importer.functions.common import Ints, ints

Floats = Sequence[float] | Tensor


@dataclass(frozen=True)
class Mode:
    """The attributes of a Resize node."""

    kind: str  # nearest, linear, cubic
    coordinates: str
    nearest: str  # a nearest_mode, or "older" for opset 10: down, and up where an axis shrinks
    cubic_a: float
    exclude_outside: bool
    extrapolation: float
    antialias: bool


@dataclass(frozen=True)
class Axis:
    """One axis to be resized: its sizes, the scale that the file states, and the region (tf)."""

    size: int
    out: int
    scale: float
    roi: tuple[float, float]


def resize(
    x: Tensor,
    roi: Floats | None,
    scales: Floats | None,
    sizes: Ints | None,
    axes: Sequence[int] | None,
    policy: str,
    settings: tuple[str, str, str, float, bool, float, bool],
) -> Tensor:
    """Resize ``x`` by ``scales`` or to ``sizes`` along ``axes`` (all if None).

    Args:
        x: any rank.
        roi: starts then ends, for tf_crop_and_resize.
        policy: keep_aspect_ratio_policy: stretch, not_larger or not_smaller.
        settings: the fields of :class:`Mode`.
    """
    mode = Mode(*settings)
    chosen = list(range(x.dim())) if axes is None else [a % x.dim() for a in axes]
    plan = _plan(x, chosen, roi, scales, sizes, policy)
    cropped = mode.coordinates == "tf_crop_and_resize"
    if not cropped and all(a.out == a.size for a in plan.values()):
        return x  # whatever the scales: onnxruntime copies
    changed = {
        d: a
        for d, a in plan.items()
        if a.out != a.size or a.scale != 1.0 or cropped
    }
    fast = _by_torch(x, changed, mode)
    if fast is not None:
        return fast
    return _by_axis(x, changed, mode)


def _plan(
    x: Tensor,
    axes: Sequence[int],
    roi: Floats | None,
    scales: Floats | None,
    sizes: Ints | None,
    policy: str,
) -> dict[int, Axis]:
    length = [x.shape[a] for a in axes]
    if sizes is not None:
        wanted = ints(sizes)
        factors = [w / n if n else 1.0 for w, n in zip(wanted, length, strict=True)]
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(axes)
            wanted = [math.floor(factor * n + 0.5) for n in length]
    else:
        assert scales is not None
        factors = _floats(scales)
        # in float32, as onnxruntime does: 0.7 (which it holds as 0.69999999) times 10 is 7
        wanted = [
            math.floor(np.float32(n) * np.float32(f)) for n, f in zip(length, factors, strict=True)
        ]
    region = _floats(roi) if roi is not None else []
    if len(region) != 2 * len(axes):
        region = [0.0] * len(axes) + [1.0] * len(axes)
    return {
        a: Axis(length[i], wanted[i], factors[i], (region[i], region[i + len(axes)]))
        for i, a in enumerate(axes)
    }


def _floats(values: Floats) -> list[float]:
    return [float(v) for v in (values.tolist() if isinstance(values, Tensor) else values)]


# -- torch's kernels -------------------------------------------------------------------------------


def _by_torch(x: Tensor, changed: dict[int, Axis], mode: Mode) -> Tensor | None:
    """F.interpolate, where rank, coordinates and scales are such that it computes the same."""
    rank = x.dim() - 2
    spatial = bool(changed) and min(changed) >= 2 and 1 <= rank <= 3
    if not spatial or mode.antialias or not x.is_floating_point():
        return None
    if any(a.out != a.size * a.scale for a in changed.values()):
        return None
    size = [changed[d].out if d in changed else x.shape[d] for d in range(2, x.dim())]
    if mode.kind == "nearest":
        return F.interpolate(x, size, mode="nearest") if _doubles(changed, mode) else None
    if mode.exclude_outside or any(a.out == 1 for a in changed.values()):
        return None
    if mode.coordinates not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    corners = mode.coordinates == "align_corners"
    if mode.kind == "linear":
        name = ("linear", "bilinear", "trilinear")[rank - 1]
        return F.interpolate(x, size, mode=name, align_corners=corners)
    if rank == 2 and mode.cubic_a == -0.75:
        return F.interpolate(x, size, mode="bicubic", align_corners=corners)
    return None


def _doubles(changed: dict[int, Axis], mode: Mode) -> bool:
    """Upsampling by powers of two, where every usual rounding picks the same neighbour."""
    powers = all(a.scale >= 1 and math.log2(a.scale).is_integer() for a in changed.values())
    usual = (mode.coordinates == "asymmetric" and mode.nearest in ("floor", "older")) or (
        mode.coordinates in ("half_pixel", "pytorch_half_pixel")
        and mode.nearest in ("round_prefer_floor", "round_prefer_ceil")
        and all(a.out > 1 for a in changed.values())
    )
    return powers and usual


# -- any mode, one axis after the other ------------------------------------------------------------


def _by_axis(x: Tensor, changed: dict[int, Axis], mode: Mode) -> Tensor:
    dtype = x.dtype
    outside: Tensor | None = None
    y = x if mode.kind == "nearest" else x.to(torch.promote_types(dtype, torch.float32))
    for dim, axis in changed.items():
        index, weight, out_of_range = _taps(axis, mode)
        y = _apply(y, dim, torch.from_numpy(index), torch.from_numpy(weight), mode.kind)
        if mode.coordinates == "tf_crop_and_resize":
            mark = torch.from_numpy(out_of_range).to(x.device)
            mark = mark.reshape([-1 if d == dim else 1 for d in range(x.dim())])
            outside = mark if outside is None else outside | mark
    if outside is not None:
        y = torch.where(outside, torch.tensor(mode.extrapolation, dtype=y.dtype), y)
    return y if y.dtype == dtype else y.to(dtype)


def _apply(x: Tensor, dim: int, index: Tensor, weight: Tensor, kind: str) -> Tensor:
    index = index.to(x.device)
    if kind == "nearest":
        return x.index_select(dim, index[0])
    shape = [-1 if d == dim else 1 for d in range(x.dim())]
    weight = weight.to(device=x.device, dtype=x.dtype)
    parts = [
        x.index_select(dim, i) * w.reshape(shape) for i, w in zip(index, weight, strict=True)
    ]
    return torch.stack(parts).sum(0) if len(parts) > 2 else parts[0] + parts[1]


@lru_cache(maxsize=256)
def _taps(axis: Axis, mode: Mode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(taps, out) indices and weights for one axis, and which outputs lie outside of the input."""
    where = _coordinates(axis, mode.coordinates)
    beyond = (where < 0) | (where > axis.size - 1)
    base = np.ceil(where) - 1
    ratio = where - base  # in (0, 1], as in ONNX's reference
    if mode.kind == "nearest":
        index = (base + _rounds_up(ratio, _rounding(axis, mode.nearest))).astype(np.int64)[None]
        return np.clip(index, 0, axis.size - 1), np.ones(index.shape), beyond
    scale = min(axis.scale, 1.0) if mode.antialias else 1.0
    reach = 1 if mode.kind == "linear" else 2
    start = math.floor(-reach / scale) + 1
    offsets = np.arange(start, 2 - start)[:, None]
    distance = np.abs(offsets - ratio[None]) * scale
    weight = (
        np.clip(1 - distance, 0, 1) if mode.kind == "linear" else _cubic(distance, mode.cubic_a)
    )
    index = (base[None] + offsets).astype(np.int64)
    if mode.exclude_outside:
        weight = np.where((index < 0) | (index >= axis.size), 0.0, weight)
    if mode.exclude_outside or mode.antialias:
        weight = weight / weight.sum(0, keepdims=True)
    return np.clip(index, 0, axis.size - 1), weight, beyond


def _coordinates(axis: Axis, kind: str) -> np.ndarray:
    """For each output position the position in the input.

    In float32, as onnxruntime computes it: ``nearest`` depends on the last bit where it rounds.
    """
    return _exact_coordinates(axis, np.float32(axis.scale), kind).astype(np.float64)


def _exact_coordinates(axis: Axis, scale: np.float32, kind: str) -> np.ndarray:
    at = np.arange(axis.out, dtype=np.float32)
    one, half = np.float32(1), np.float32(0.5)
    if kind == "asymmetric":
        return at / scale
    if kind == "tf_half_pixel_for_nn":
        return (at + half) / scale
    if kind == "align_corners":
        last = np.float32(max(axis.out - 1, 1))
        return at * np.float32(axis.size - 1) / last
    if kind == "tf_crop_and_resize":
        return _cropped(axis, at)
    if kind == "pytorch_half_pixel" and axis.out == 1:
        return at * 0
    centre = (at + half) / scale - half
    if kind == "half_pixel_symmetric":
        adjusted = np.float32(axis.out) / (scale * np.float32(axis.size))
        centre = centre + np.float32(axis.size) * half * (one - adjusted)
    return centre


def _cropped(axis: Axis, at: np.ndarray) -> np.ndarray:
    start, end = (np.float32(v) for v in axis.roi)
    last = np.float32(axis.size - 1)
    if axis.out == 1:
        return at * 0 + np.float32(0.5) * (start + end) * last
    return start * last + at * (end - start) * last / np.float32(axis.out - 1)


def _rounding(axis: Axis, mode: str) -> str:
    if mode != "older":
        return mode
    return "ceil" if axis.scale < 1 else "floor"


def _rounds_up(ratio: np.ndarray, mode: str) -> np.ndarray:
    if mode == "floor":
        return ratio >= 1
    if mode == "ceil":
        return ratio > 0
    return ratio > 0.5 if mode == "round_prefer_floor" else ratio >= 0.5


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
