"""Reductions over axes."""

from __future__ import annotations

from typing import Any

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.targets import function
from bnpass.frontends.fx.vocabulary.arithmetic import binary


def _reduce(call: Call, kind: str, x: Any, dim: Any, keepdim: bool) -> None:
    info = call.info(x)
    if info.dtype != call.result.dtype:
        raise UnknownError("it changes the type")
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        axes = list(range(len(info.shape)))
    else:
        axes = [call.axis(x, d) for d in (dim if isinstance(dim, list | tuple) else [dim])]
    call.emit(kind, [call.value(x), call.ints("axes", axes)], {"keepdims": int(keepdim)})


@function("mean")
def mean(call: Call, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> None:
    """ReduceMean."""
    del dtype
    _reduce(call, "ReduceMean", x, dim, keepdim)


@function("sum")
def total(call: Call, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> None:
    """ReduceSum."""
    del dtype
    _reduce(call, "ReduceSum", x, dim, keepdim)


@function("amax")
def amax(call: Call, x: Any, dim: Any = None, keepdim: bool = False) -> None:
    """ReduceMax."""
    _reduce(call, "ReduceMax", x, dim, keepdim)


@function("amin")
def amin(call: Call, x: Any, dim: Any = None, keepdim: bool = False) -> None:
    """ReduceMin."""
    _reduce(call, "ReduceMin", x, dim, keepdim)


def _extremum(call: Call, kind: str, args: tuple[Any, ...], other: Any) -> None:
    """Of two values; or of all entries of one. With an axis it makes indices, too."""
    x, *rest = args
    if other is None and rest and not isinstance(rest[0], int):
        other = rest[0]
    if other is not None:
        binary(call, kind, x, other, ("x", "other"))
    elif rest:
        raise UnknownError("it makes indices, too")
    else:
        _reduce(call, f"Reduce{kind}", x, None, False)


@function("max")
def maximum(call: Call, x: Any, *args: Any, other: Any = None) -> None:
    """Max or ReduceMax."""
    _extremum(call, "Max", (x, *args), other)


@function("min")
def minimum(call: Call, x: Any, *args: Any, other: Any = None) -> None:
    """Min or ReduceMin."""
    _extremum(call, "Min", (x, *args), other)
