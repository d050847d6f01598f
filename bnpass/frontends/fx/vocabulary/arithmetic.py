"""Sums, products, extrema of values and numbers; types."""

from __future__ import annotations

from typing import Any

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.targets import function

_NUMBER = int | float


def binary(call: Call, kind: str, a: Any, b: Any, names: tuple[str, str]) -> None:
    """An operator of two operands; a number takes the type of the other one."""
    if isinstance(a, bool) or isinstance(b, bool):
        raise UnknownError("an operand is a truth value")
    like = b if isinstance(a, _NUMBER) else a
    inputs = [call.value(a, like), call.value(b, like)]
    made = call.result.dtype
    free = [x for x, n in zip((a, b), inputs, strict=True) if n not in call.reading.constants]
    if any(call.info(x).dtype != made for x in free):
        raise UnknownError("it changes the type")
    call.emit(kind, inputs, slots={0: names[0], 1: names[1]})


def _plain(alpha: Any) -> None:
    if alpha != 1:
        raise UnknownError("a factor alpha")


@function("add", "iadd", "__add__", "__radd__", "__iadd__")
def add(call: Call, x: Any, other: Any, *, alpha: Any = 1) -> None:
    """Add."""
    _plain(alpha)
    binary(call, "Add", x, other, ("x", "other"))


@function("sub", "subtract", "isub", "__sub__", "__isub__")
def sub(call: Call, x: Any, other: Any, *, alpha: Any = 1) -> None:
    """Sub."""
    _plain(alpha)
    binary(call, "Sub", x, other, ("x", "other"))


@function("rsub", "__rsub__")
def rsub(call: Call, x: Any, other: Any, alpha: Any = 1) -> None:
    """Sub the other way round."""
    _plain(alpha)
    binary(call, "Sub", other, x, ("other", "x"))


@function("mul", "multiply", "imul", "__mul__", "__rmul__", "__imul__")
def mul(call: Call, x: Any, other: Any) -> None:
    """Mul."""
    binary(call, "Mul", x, other, ("x", "other"))


@function("div", "divide", "truediv", "true_divide", "itruediv", "__truediv__")
def div(call: Call, x: Any, other: Any, *, rounding_mode: Any = None) -> None:
    """Div."""
    if rounding_mode is not None:
        raise UnknownError("it rounds")
    binary(call, "Div", x, other, ("x", "other"))


@function("__rtruediv__")
def rdiv(call: Call, x: Any, other: Any) -> None:
    """Div the other way round."""
    binary(call, "Div", other, x, ("other", "x"))


@function("neg", "negative", "__neg__")
def neg(call: Call, x: Any) -> None:
    """Neg."""
    call.emit("Neg", [call.value(x)])


@function("maximum", "fmax")
def maximum(call: Call, x: Any, other: Any) -> None:
    """Max."""
    binary(call, "Max", x, other, ("x", "other"))


@function("minimum", "fmin")
def minimum(call: Call, x: Any, other: Any) -> None:
    """Min."""
    binary(call, "Min", x, other, ("x", "other"))


# --- types and copies ----------------------------------------------------------------------------


@function(
    "to", "float", "double", "half", "bfloat16", "type", "type_as", "_to_copy", "contiguous",
    "clone", "detach", "cpu", "cuda", "requires_grad", "alias", "lift_fresh_copy",
)  # fmt: skip
def cast(call: Call, x: Any, *args: Any, **kwargs: Any) -> None:
    """Cast where the type changes, else Identity."""
    del args, kwargs
    before, after = call.info(x).dtype, call.result.dtype
    if before == after:
        call.emit("Identity", [call.value(x)])
    else:
        call.emit("Cast", [call.value(x)], {"from": before, "to": after})


@function("size", "shape", "dim", "numel", "ndimension", "sym_size")
def size(call: Call, x: Any, *args: Any, **kwargs: Any) -> None:
    """Shape: what it makes does not depend on the numbers."""
    del args, kwargs
    call.emit("Shape", [call.value(x)])


@function("getattr")
def attribute(call: Call, x: Any, name: str) -> None:
    """``x.shape`` and the like; ``x.T`` moves entries."""
    info = call.info(x)
    if name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout"):
        call.emit("Shape", [call.value(x)])
    elif name in ("T", "mT", "H", "mH") and (name[0] == "m" or len(info.shape) == 2):
        rank = len(info.shape)
        perm = [*range(rank - 2), rank - 1, rank - 2]
        call.emit("Transpose", [call.value(x)], {"perm": perm})
    else:
        raise UnknownError(f"its attribute {name!r}")


@function("where")
def where(call: Call, condition: Any, x: Any, other: Any) -> None:
    """Where."""
    call.emit("Where", [call.value(condition), call.value(x, other), call.value(other, x)])
