"""Matrix products of integers, which torch has for some types only, and of types not known."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """ONNX MatMul (13) for any type: int64 wraps as a narrow integer would."""
    if a.is_floating_point():
        return torch.matmul(a, b)
    return torch.matmul(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)


def gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float) -> Tensor:
    """ONNX Gemm (13) for any type; ``a`` and ``b`` are transposed already."""
    product = matmul(a, b) if alpha == 1.0 else (matmul(a, b) * alpha).to(a.dtype)
    if c is None:
        return product
    return product + (c if beta == 1.0 else (c * beta).to(a.dtype))
