"""Comparing two tensors: the errors that a verification reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bnpass.onnx_model.signature import is_float
from bnpass.runtime.tolerance import Tolerance

Array = np.ndarray[Any, Any]


@dataclass
class Comparison:
    """How far one tensor is from its reference, the worst over all draws.

    Attributes:
        passed: |a - b| <= atol + rtol * max|a| everywhere and no new NaN or Inf; integers, bools
            and strings: all equal.
        max_abs: largest |a - b|.
        max_rel: largest |a - b| / max|a|, the maximum over the whole tensor of one draw.
        cosine: smallest cosine of the angle between the two tensors.
        ulps: largest |a - b| in units in the last place of the type at max|a|.
        top1: share of samples whose largest class is the same; None where it is no classifier.
        tolerance: the smallest rtol with which this tensor passes at the given atol.
        nonfinite: NaN and Inf that the reference does not have, or has elsewhere.
        varies: False if the reference is the same for every sample of every draw (proves little).
        compared: number of elements.
        scale: largest |a|.
        noise: how far the reference itself moves when its numbers move by a rounding.
        ratio: max_abs by the noise; None where there is no noise.
        limit: what max_abs may be.
        steps: entries behind a rounding or a comparison that are another step.
    """

    passed: bool = True
    max_abs: float = 0.0
    max_rel: float = 0.0
    cosine: float = 1.0
    ulps: float = 0.0
    top1: float | None = None
    tolerance: float = 0.0
    nonfinite: int = 0
    varies: bool = False
    compared: int = 0
    scale: float = 0.0
    noise: float = 0.0
    ratio: float | None = None
    limit: float = 0.0
    steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; JSON-able (an infinite error as the text ``"inf"``)."""
        return {k: jsonable(v) for k, v in asdict(self).items()}


def jsonable(value: Any) -> Any:
    """Return a float that JSON cannot hold as text, everything else as it is."""
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def compare(reference: Array, candidate: Array, rule: Tolerance) -> Comparison:
    """Compare a tensor with its reference of the same shape, in float64.

    Args:
        reference: any shape and type.
        candidate: the same shape; its float type may be another.
        rule: the tolerance.
    """
    if not (is_float(reference.dtype) or reference.dtype.kind == "c"):
        return _compare_exact(reference, candidate)
    wide = np.complex128 if reference.dtype.kind == "c" else np.float64
    a, b = reference.astype(wide), candidate.astype(wide)
    result = Comparison(compared=a.size, varies=_varies(a), top1=_top1(a, b))
    usable = np.isfinite(a) & np.isfinite(b)
    result.nonfinite = int(np.sum(~usable & ~_same_nonfinite(a, b)))
    a, b = np.where(usable, a, 0), np.where(usable, b, 0)
    scale = float(np.max(np.abs(a), initial=0.0))
    result.scale = scale
    result.max_abs = float(np.max(np.abs(a - b), initial=0.0))
    result.max_rel = _ratio(result.max_abs, scale)
    result.tolerance = _ratio(max(result.max_abs - rule.atol, 0.0), scale)
    result.cosine = _cosine(a, b)
    result.ulps = result.max_abs / _last_place(scale, reference.dtype)
    result.limit = rule.atol + rule.rtol * scale
    result.passed = not result.nonfinite and result.max_abs <= result.limit
    if result.nonfinite:
        result.tolerance = float("inf")
    return result


def merge(worst: Comparison, other: Comparison) -> Comparison:
    """Return the worse of two comparisons of the same output, field by field."""
    shares = [(c.top1, c.compared) for c in (worst, other) if c.top1 is not None and c.compared]
    total = sum(n for _, n in shares)
    return Comparison(
        passed=worst.passed and other.passed,
        max_abs=max(worst.max_abs, other.max_abs),
        max_rel=max(worst.max_rel, other.max_rel),
        cosine=min(worst.cosine, other.cosine),
        ulps=max(worst.ulps, other.ulps),
        top1=sum(share * n for share, n in shares) / total if total else None,
        tolerance=max(worst.tolerance, other.tolerance),
        nonfinite=worst.nonfinite + other.nonfinite,
        varies=worst.varies or other.varies,
        compared=worst.compared + other.compared,
        scale=max(worst.scale, other.scale),
        noise=max(worst.noise, other.noise),
        ratio=max((r for r in (worst.ratio, other.ratio) if r is not None), default=None),
        limit=max(worst.limit, other.limit),
        steps=worst.steps + other.steps,
    )


def _compare_exact(a: Array, b: Array) -> Comparison:
    differ = a != b
    result = Comparison(compared=a.size, varies=_varies(a), passed=not bool(differ.any()))
    if differ.any():
        numbers = a.dtype.kind in "iub"
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64)).max() if numbers else np.inf
        result.max_abs = float(gap)
        result.max_rel = result.tolerance = result.ulps = float(np.mean(differ))
        result.cosine = _cosine(a.astype(float), b.astype(float)) if numbers else 0.0
    return result


def _same_nonfinite(a: Array, b: Array) -> Any:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _ratio(error: float, scale: float) -> float:
    return error / scale if scale > 0 else (0.0 if error == 0 else float("inf"))


def _cosine(a: Array, b: Array) -> float:
    top = max(float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0)))
    if top == 0:
        return 1.0
    x, y = a.ravel() / top, b.ravel() / top  # so that squares neither overflow nor vanish
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return (
        float(np.abs(np.vdot(x, y)) / norms)
        if a.dtype.kind == "c" and norms
        else (float(np.vdot(x, y).real / norms) if norms else 0.0)
    )


def _last_place(scale: float, dtype: np.dtype[Any]) -> float:
    """Return the distance of neighbouring numbers of a type at a magnitude."""
    if dtype.kind == "c":
        return _last_place(scale, np.dtype(np.float32 if dtype.itemsize == 8 else np.float64))
    if dtype.name in ("float16", "float32", "float64"):
        return float(np.spacing(np.abs(dtype.type(scale))))
    import ml_dtypes

    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(max(scale, float(info.smallest_normal))) * float(info.eps)


def _varies(a: Array) -> bool:
    return a.size > 1 and a.ndim > 0 and bool(np.any(a[:1] != a))


def _top1(a: Array, b: Array) -> float | None:
    """Return the agreement of the largest class, for (N, C) and (N, C, 1, ...) alone."""
    if a.ndim < 2 or a.shape[1] < 2 or a.size != a.shape[0] * a.shape[1] or a.dtype.kind == "c":
        return None
    if not a.shape[0]:
        return None
    x, y = a.reshape(a.shape[:2]), b.reshape(b.shape[:2])
    return float(np.mean(x.argmax(axis=1) == y.argmax(axis=1)))
