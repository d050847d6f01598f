"""Gemm, MatMul, Einsum: contractions."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnpass.verdict.evaluator.call import Call, one, operator


@operator("Gemm")
@one
def _gemm(call: Call) -> Any:
    a = call[0].T if call.attrs.get("transA", 0) else call[0]
    b = call[1].T if call.attrs.get("transB", 0) else call[1]
    y = float(call.attrs.get("alpha", 1.0)) * (a @ b)
    c = call.get(2)
    return y if c is None else y + float(call.attrs.get("beta", 1.0)) * c


@operator("MatMul")
@one
def _matmul(call: Call) -> Any:
    return np.matmul(call[0], call[1])


@operator("MatMulInteger")
@one
def _matmul_integer(call: Call) -> Any:
    a, b = call[0].astype(np.int32), call[1].astype(np.int32)
    for_a, for_b = call.get(2), call.get(3)
    if for_a is not None:
        zero = for_a.astype(np.int32)
        a = a - (zero[..., None] if zero.ndim == 1 and zero.size > 1 else zero)
    if for_b is not None:
        b = b - for_b.astype(np.int32)
    return np.matmul(a, b)


@operator("Einsum")
@one
def _einsum(call: Call) -> Any:
    operands = [a for a in call.inputs if a is not None]
    return np.asarray(np.einsum(call.attrs["equation"].replace(" ", ""), *operands, optimize=True))


@operator("Det")
@one
def _det(call: Call) -> Any:
    return np.asarray(np.linalg.det(call[0]))
