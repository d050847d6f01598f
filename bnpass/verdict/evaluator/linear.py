"""Gemm, MatMul, Einsum: contractions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, one, operator

BLOCKWISE = frozenset({"Gemm", "MatMul"})
"""Operators that take a large second operand of any floating type."""

LARGE = 1 << 22
"""Entries of a matrix from which on it is widened to float64 in blocks of its columns."""


class Squares:
    """The squares of a large matrix, made block by block.

    Args:
        array: the matrix.
        square: makes the squares of a block of it.
    """

    def __init__(self, array: Array, square: Callable[[Array], Array]) -> None:
        self.array, self.square = array, square
        self.ndim, self.size, self.shape, self.dtype = 2, array.size, array.shape, array.dtype

    @property
    def T(self) -> Squares:  # noqa: N802 - as numpy calls it
        """Transposed."""
        return Squares(self.array.T, self.square)

    def __getitem__(self, at: Any) -> Array:
        return self.square(self.array[at])


def product(a: Array, b: Any) -> Any:
    """a @ b in float64; a large b is never widened whole."""
    a = a.astype(np.float64, copy=False) if a.dtype.kind == "f" else a
    if b.ndim != 2 or b.size <= LARGE or a.ndim < 2:
        return np.matmul(a, b.astype(np.float64) if b.dtype.kind == "f" else b)
    y = np.empty((*a.shape[:-1], b.shape[1]))
    step = max(LARGE // b.shape[0], 1)
    for start in range(0, b.shape[1], step):
        block = np.ascontiguousarray(b[:, start : start + step]).astype(np.float64)
        y[..., start : start + step] = a @ block
    return y


@operator("Gemm")
@one
def _gemm(call: Invocation) -> Any:
    a = call[0].T if call.attrs.get("transA", 0) else call[0]
    b = call[1].T if call.attrs.get("transB", 0) else call[1]
    y = float(call.attrs.get("alpha", 1.0)) * product(a, b)
    c = call.get(2)
    return y if c is None else y + float(call.attrs.get("beta", 1.0)) * c


@operator("MatMul")
@one
def _matmul(call: Invocation) -> Any:
    return product(call[0], call[1])


@operator("MatMulInteger")
@one
def _matmul_integer(call: Invocation) -> Any:
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
def _einsum(call: Invocation) -> Any:
    operands = [a for a in call.inputs if a is not None]
    return np.asarray(np.einsum(call.attrs["equation"].replace(" ", ""), *operands, optimize=True))


@operator("Det")
@one
def _det(call: Invocation) -> Any:
    return np.asarray(np.linalg.det(call[0]))
