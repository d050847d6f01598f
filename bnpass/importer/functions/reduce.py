"""Reductions: any set of axes, none of them, and empty tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnpass.importer.functions.common import Ints, ints


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.sum(dim=dims, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dim=dims, keepdim=keep)
    count = x.numel() // max(1, _sum(x, dims, keep).numel())
    return torch.div(x.sum(dim=dims, keepdim=keep), count, rounding_mode="trunc").to(x.dtype)


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim=dim, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(name: str, empty: float) -> Callable[[Tensor, list[int], bool], Tensor]:
    def reduce(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        if all(x.shape[d] for d in dims):
            result: Tensor = getattr(x, name)(dim=dims, keepdim=keep)
            return result
        shape = _sum(x.to(torch.float32), dims, keep).shape
        return torch.full(shape, _lowest(x.dtype, empty), dtype=x.dtype, device=x.device)

    return reduce


def _lowest(dtype: torch.dtype, sign: float) -> float:
    if dtype == torch.bool:
        return sign > 0
    if dtype.is_floating_point:
        return sign * float("inf")
    info = torch.iinfo(dtype)
    return info.max if sign > 0 else info.min


def _l2(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    wide = x if x.is_floating_point() else x.to(torch.float64)
    return torch.sqrt(_sum(wide * wide, dims, keep)).to(x.dtype)


def _log_sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.log(_sum(_wide(x), dims, keep)).to(x.dtype)


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(_wide(x), dim=dims, keepdim=keep).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.float64)


_REDUCTIONS: dict[str, Callable[[Any, list[int], bool], Tensor]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _prod,
    "ReduceMax": _extreme("amax", -1.0),
    "ReduceMin": _extreme("amin", 1.0),
    "ReduceL1": lambda x, d, k: _sum(x.abs(), d, k),
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": lambda x, d, k: _sum(x * x, d, k),
}


def reduce(x: Tensor, kind: str, axes: Ints | None, keepdims: bool, noop: bool = False) -> Tensor:
    """ONNX Reduce* (20): over ``axes``, or over all of them if there are none and not ``noop``."""
    dims = [] if axes is None else [a % x.dim() for a in ints(axes)]
    if not dims and not noop:
        dims = list(range(x.dim()))
    if not dims and x.dim() and kind in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"):
        return x
    if not dims:
        return _scalar(x, kind)
    return _REDUCTIONS[kind](x, dims, keepdims)


def _scalar(x: Tensor, kind: str) -> Tensor:
    return _REDUCTIONS[kind](x.unsqueeze(0), [0], False)


def arg_extreme(x: Tensor, kind: str, axis: int, keepdims: bool, last: bool) -> Tensor:
    """ONNX ArgMax and ArgMin (13): the first, or the last, of equal values."""
    size = x.shape[axis]
    wide = x if x.dtype not in (torch.uint16, torch.uint32) else x.to(torch.int64)
    found = (wide.flip(axis) if last else wide).__getattribute__(kind)(dim=axis, keepdim=keepdims)
    result: Tensor = size - 1 - found if last else found
    return result


def cumulate(x: Tensor, kind: str, axis: int | Tensor, exclusive: bool, reverse: bool) -> Tensor:
    """ONNX CumSum (14) and CumProd (26)."""
    dim = int(axis)
    x = x.flip(dim) if reverse else x
    function = torch.cumsum if kind == "CumSum" else torch.cumprod
    total = function(x, dim=dim, dtype=x.dtype)
    if exclusive:
        neutral = torch.full_like(x.narrow(dim, 0, 1), 0 if kind == "CumSum" else 1)
        total = torch.cat([neutral, total.narrow(dim, 0, x.shape[dim] - 1)], dim=dim)
    return total.flip(dim) if reverse else total
