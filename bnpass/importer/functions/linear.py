"""Matrix products of integers: torch has them for some types only."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """ONNX MatMul (13) for integers: int64 wraps as the narrow type would."""
    return torch.matmul(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)


def gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float) -> Tensor:
    """ONNX Gemm (13) for integers; ``a`` and ``b`` are transposed already."""
    product = matmul(a, b) if alpha == 1.0 else (matmul(a, b) * alpha).to(a.dtype)
    if c is None:
        return product
    return product + (c if beta == 1.0 else (c * beta).to(a.dtype))
