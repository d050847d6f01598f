"""Elementwise arithmetic that torch defines differently or not for every type."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnpass.errors import InputError

_WRAPPING = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
_ORDERED: dict[str, Callable[..., Any]] = {
    "div": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "eq": torch.eq,
    "gt": torch.gt,
    "ge": torch.ge,
    "lt": torch.lt,
    "le": torch.le,
}
_BITWISE: dict[str, Callable[..., Any]] = {
    "bitwise_and": torch.bitwise_and,
    "bitwise_or": torch.bitwise_or,
    "bitwise_xor": torch.bitwise_xor,
}


def unsigned(name: str, a: Tensor, b: Tensor) -> Tensor:
    """Arithmetic of uint16, uint32 and uint64 through int64.

    Sums and products wrap as they should; anything that depends on the order refuses uint64 values
    of 2**63 and more, which int64 cannot hold.
    """
    wide_a, wide_b = a.to(torch.int64), b.to(torch.int64)
    bits = _WRAPPING.get(name) or _BITWISE.get(name)
    if bits is not None:
        return Tensor.to(bits(wide_a, wide_b), a.dtype)
    if a.dtype == torch.uint64 and bool((wide_a < 0).any() or (wide_b < 0).any()):
        raise InputError("uint64 values of 2**63 and more cannot be compared or divided")
    result: Tensor = _ORDERED[name](wide_a, wide_b)
    return result if result.dtype == torch.bool else result.to(a.dtype)


def div(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Div (14): integers divide towards zero."""
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """ONNX Pow (15): the result has the base's type; integers round towards zero."""
    if exponent.is_floating_point() and not base.is_floating_point():
        return torch.pow(base.to(torch.float64), exponent).to(base.dtype)
    if not exponent.is_floating_point() and not base.is_floating_point():
        wide = base.to(torch.int64), exponent.to(torch.int64)
        return torch.pow(*wide).to(base.dtype)
    return torch.pow(base, exponent.to(base.dtype)).to(base.dtype)


def bit_shift(x: Tensor, amount: Tensor, direction: str) -> Tensor:
    """ONNX BitShift (11) of unsigned integers."""
    if x.dtype == torch.uint64 and bool((x.to(torch.int64) < 0).any()) and direction == "RIGHT":
        raise InputError("uint64 values of 2**63 and more cannot be shifted to the right")
    wide, by = x.to(torch.int64), amount.to(torch.int64)
    shifted = wide << by if direction == "LEFT" else wide >> by
    return shifted.to(x.dtype)


def is_inf(x: Tensor, negative: bool, positive: bool) -> Tensor:
    """ONNX IsInf (20)."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if negative:
        found = found | torch.isneginf(x)
    if positive:
        found = found | torch.isposinf(x)
    return found


def bitwise_not(x: Tensor) -> Tensor:
    """ONNX BitwiseNot (18); through int64 for the types that torch barely computes with."""
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return torch.bitwise_not(x.to(torch.int64)).to(x.dtype)
    return torch.bitwise_not(x)
