"""Elementwise arithmetic, comparison and logic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from bnpass.importer.functions import elementwise as functions
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import Handler, register_op
from bnpass.importer.values import Arg

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch stores but barely computes with."""


def _unary(function: Callable[..., Any]) -> Handler:
    def translate(op: ImportedNode) -> Arg:
        return op.call(function, op.tensor(0))

    return translate


for _name in (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp",
    "Floor", "Log", "Neg", "Reciprocal", "Round", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "IsNaN",
):  # fmt: skip
    register_op(_name)(_unary(getattr(torch, _name.lower())))
register_op("Not")(_unary(torch.logical_not))
register_op("Det")(_unary(torch.det))
register_op("BitwiseNot")(_unary(functions.bitwise_not))


def _binary(plain: Callable[..., Any], *, second_trains: bool = True) -> Handler:
    """Python's operators: what torch.fx records for ``x + y``."""

    def translate(op: ImportedNode) -> Arg:
        if op.dtype(0) in UNSIGNED:
            return op.call(functions.unsigned, plain.__name__, op.tensor(0), op.tensor(1))
        a, b = op.operand(0), op.operand(1, trainable=second_trains)
        return op.call(plain, a, b)

    return translate


register_op("Add", since=7)(_binary(operator.add))
register_op("Sub", since=7)(_binary(operator.sub))
register_op("Mul", since=7)(_binary(operator.mul))


@register_op("Div", since=7)
def div(op: ImportedNode) -> Arg:
    """Integers divide towards zero. A constant divisor is not trained, a dividend is."""
    if op.dtype(0) in UNSIGNED:
        return op.call(functions.unsigned, "div", op.tensor(0), op.buffer(1))
    if op.is_float() or op.is_float(1):
        return op.call(operator.truediv, op.operand(0), op.operand(1, trainable=False))
    return op.call(functions.div, op.tensor(0), op.buffer(1))


@register_op("Pow", since=7)
def pow_(op: ImportedNode) -> Arg:
    """The result has the base's type."""
    if op.is_float() and op.is_float(1):
        base = op.tensor(0)
        return op.call(torch.pow, base, op.operand(1, trainable=False))
    return op.call(functions.power, op.tensor(0), op.buffer(1))


@register_op("Mod")
def mod(op: ImportedNode) -> Arg:
    """fmod=1: the sign of the dividend, as C; else of the divisor, as Python."""
    name = "fmod" if op.attr("fmod", 0) else "remainder"
    if op.dtype(0) in UNSIGNED:
        return op.call(functions.unsigned, name, op.tensor(0), op.buffer(1))
    return op.call(getattr(torch, name), op.tensor(0), op.buffer(1))


def _variadic(plain: Callable[..., Any]) -> Handler:
    def translate(op: ImportedNode) -> Arg:
        result = op.tensor(0)
        for i in range(1, len(op.inputs)):
            if op.dtype(0) in UNSIGNED:
                result = op.call(functions.unsigned, plain.__name__, result, op.tensor(i))
            else:
                result = op.call(plain, result, op.tensor(i))
        return result

    return translate


register_op("Sum", since=8)(_variadic(operator.add))
register_op("Max", since=8)(_variadic(torch.maximum))
register_op("Min", since=8)(_variadic(torch.minimum))


@register_op("Max", until=7)
@register_op("Min", until=7)
@register_op("Sum", until=7)
@register_op("Mean")
def mean(op: ImportedNode) -> Arg:
    """The mean of all; before opset 8 the others take equal shapes, a case of broadcasting."""
    plain = {"Max": torch.maximum, "Min": torch.minimum}.get(op.node.op_type, operator.add)
    total = _variadic(plain)(op)
    if op.node.op_type == "Mean":
        return op.call(operator.truediv, total, len(op.inputs))
    return total


def _compare(plain: Callable[..., Any]) -> Handler:
    def translate(op: ImportedNode) -> Arg:
        a, b = op.buffer(0), op.buffer(1)
        if op.dtype(0) in UNSIGNED:
            return op.call(functions.unsigned, plain.__name__, a, b)
        return op.call(plain, a, b)

    return translate


for _name, _function in {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}.items():
    register_op(_name, since=7)(_compare(_function))


@register_op("BitShift")
def bit_shift(op: ImportedNode) -> Arg:
    """Bits that leave the type are lost."""
    return op.call(functions.bit_shift, op.buffer(0), op.buffer(1), op.attr("direction"))


@register_op("IsInf")
def is_inf(op: ImportedNode) -> Arg:
    """Of either sign, or of one."""
    signs = (bool(op.attr("detect_negative", 1)), bool(op.attr("detect_positive", 1)))
    return op.call(functions.is_inf, op.tensor(0), *signs)


@register_op("Where")
def where(op: ImportedNode) -> Arg:
    """Constants in it (a mask's -inf) are not trained."""
    return op.call(torch.where, op.buffer(0), op.buffer(1), op.buffer(2))
