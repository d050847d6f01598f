"""Gemm, MatMul and Einsum."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bnpass.importer.functions import linear
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg


def _floats(op: ImportedNode) -> bool:
    """Whether one of the factors is known to be floating point; both have one type."""
    return op.is_float(0) or op.is_float(1)


@register_op("Gemm")
def gemm(op: ImportedNode) -> Arg:
    """alpha * A' B' + beta * C; F.linear where it is that."""
    alpha, beta = op.attr("alpha", 1.0), op.attr("beta", 1.0)
    a, b, c = op.weight(0), op.weight(1), op.weight(2)
    if op.attr("transA", 0):
        a = op.call(torch.transpose, a, 0, 1)
    plain = alpha == 1.0 and (c is None or beta == 1.0)
    vector = c is None or len(op.shape(2) or ()) == 1
    if op.attr("transB", 0) and plain and vector and _floats(op):
        return op.call(F.linear, a, b, c)
    if op.attr("transB", 0):
        b = op.call(torch.transpose, b, 0, 1)
    if not _floats(op):
        return op.call(linear.gemm, a, b, c, alpha, beta)
    if c is None:
        product = op.call(torch.matmul, a, b)
        return product if alpha == 1.0 else op.call(torch.mul, product, alpha)
    return op.call(torch.addmm, c, a, b, beta=beta, alpha=alpha)


@register_op("MatMul")
def matmul(op: ImportedNode) -> Arg:
    """numpy.matmul."""
    if _floats(op):
        return op.call(torch.matmul, op.weight(0), op.weight(1))
    return op.call(linear.matmul, op.weight(0), op.weight(1))


@register_op("Einsum")
def einsum(op: ImportedNode) -> Arg:
    """torch's notation is ONNX's."""
    operands = [op.weight(i) for i in range(len(op.inputs))]
    return op.call(torch.einsum, op.attr("equation").replace(" ", ""), *operands)
