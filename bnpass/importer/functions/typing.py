"""Conversions of element types."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """ONNX Cast (25) to a float8 type: values out of range saturate, or become inf or NaN."""
    if not saturate:
        return x.to(dtype)
    limit = torch.finfo(dtype).max
    wide = x.to(torch.float32)
    clamped = wide.clamp(-limit, limit)
    if dtype in (torch.float8_e5m2, torch.float8_e4m3fn):
        return clamped.to(dtype)
    return torch.where(torch.isnan(wide), wide, clamped).to(dtype)
