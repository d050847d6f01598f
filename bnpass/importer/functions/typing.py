"""Conversions of element types."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """ONNX Cast (25) to a float8 type: values out of range saturate, or become inf or NaN."""
    if not saturate:
        made = x.to(dtype)
        if dtype != torch.float8_e4m3fn:
            return made
        # this type has no infinity: what rounds beyond 448 is NaN (464 is the tie, to even)
        beyond = x.to(torch.float32).abs() > 464
        return torch.where(beyond, torch.nan, made.to(torch.float32)).to(dtype)
    limit = torch.finfo(dtype).max
    wide = x.to(torch.float32)
    clamped = wide.clamp(-limit, limit)
    if dtype in (torch.float8_e5m2, torch.float8_e4m3fn):
        return clamped.to(dtype)
    return torch.where(torch.isnan(wide), wide, clamped).to(dtype)


def cast_like(x: Tensor, like: Tensor, saturate: bool) -> Tensor:
    """ONNX CastLike (25) where the type is only known when it runs."""
    if like.dtype.itemsize == 1 and like.dtype.is_floating_point:
        return to_float8(x, like.dtype, saturate)
    return x.to(like.dtype)
