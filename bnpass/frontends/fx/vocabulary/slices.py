"""Parts of a value: x[...], narrow, select, index_select."""

from __future__ import annotations

from typing import Any

from torch import fx

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.info import Info
from bnpass.frontends.fx.targets import function
from bnpass.ir.graph import Dim

_END = 2**31 - 1


def _cut(dim: Dim, part: slice) -> Dim:
    """The size of a slice of an axis."""
    if part == slice(None):
        return dim
    return len(range(dim)[part]) if isinstance(dim, int) else None


def _numbers(part: slice) -> bool:
    return all(v is None or isinstance(v, int) for v in (part.start, part.stop, part.step))


def _slice(call: Call, name: str, info: Info, cuts: dict[int, slice]) -> tuple[str, Info, Any]:
    """(input names of a Slice, what it makes, its constants)."""
    shape = tuple(_cut(d, cuts.get(i, slice(None))) for i, d in enumerate(info.shape))
    starts = [c.start or 0 for c in cuts.values()]
    ends = [_END if c.stop is None else c.stop for c in cuts.values()]
    steps = [c.step or 1 for c in cuts.values()]
    inputs = [
        name,
        call.ints("starts", starts),
        call.ints("ends", ends),
        call.ints("axes", list(cuts)),
        call.ints("steps", steps),
    ]
    return name, Info(shape, info.dtype), inputs


@function("getitem", "__getitem__")
def getitem(call: Call, x: Any, index: Any) -> None:
    """Slices in one Slice, whole numbers as a Gather each, None as an Unsqueeze."""
    info, name = call.info(x), call.value(x)
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, fx.Node | list | bool) for p in parts):
        raise UnknownError("an index is computed")
    parts = _without_ellipsis(parts, len(info.shape))
    cuts, picks, news = _sorted_parts(parts)
    steps: list[tuple[str, Any]] = []
    if cuts:
        steps.append(("Slice", cuts))
    steps += [("Gather", pick) for pick in sorted(picks.items(), reverse=True)]
    if news or not steps:
        steps.append(("Reshape", None))
    _emit_steps(call, name, info, steps)


def _without_ellipsis(parts: tuple[Any, ...], rank: int) -> tuple[Any, ...]:
    if Ellipsis not in parts:
        return parts
    at = parts.index(Ellipsis)
    named = sum(p is not None for p in parts) - 1
    return (*parts[:at], *[slice(None)] * (rank - named), *parts[at + 1 :])


def _sorted_parts(parts: tuple[Any, ...]) -> tuple[dict[int, slice], dict[int, int], int]:
    """(slices by axis, numbers by axis, how many new axes)."""
    cuts: dict[int, slice] = {}
    picks: dict[int, int] = {}
    axis = news = 0
    for part in parts:
        if part is None:
            news += 1
            continue
        if isinstance(part, slice):
            if not _numbers(part):
                raise UnknownError("an index is computed")
            if part != slice(None):
                cuts[axis] = part
        elif isinstance(part, int):
            picks[axis] = part
        else:
            raise UnknownError("an index of another kind")
        axis += 1
    return cuts, picks, news


def _emit_steps(call: Call, name: str, info: Info, steps: list[tuple[str, Any]]) -> None:
    for number, (kind, what) in enumerate(steps):
        last = number == len(steps) - 1
        attrs: dict[str, Any] = {}
        if kind == "Slice":
            _, made, inputs = _slice(call, name, info, what)
        elif kind == "Gather":
            axis, pick = what
            made = Info(info.shape[:axis] + info.shape[axis + 1 :], info.dtype)
            inputs, attrs = [name, call.scalar(f"index{axis}", pick)], {"axis": axis}
        else:
            made, inputs = call.result, [name]
        if last:
            call.emit(kind, inputs, attrs)
        else:
            name, info = call.step(kind, inputs, made, attrs), made


@function("narrow")
def narrow(call: Call, x: Any, dim: Any, start: Any, length: Any) -> None:
    """Slice."""
    if not isinstance(start, int) or not isinstance(length, int):
        raise UnknownError("an index is computed")
    cuts = {call.axis(x, dim): slice(start, start + length)}
    call.emit("Slice", _slice(call, call.value(x), call.info(x), cuts)[2])


@function("aten.slice")
def slice_aten(
    call: Call, x: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1
) -> None:
    """Slice."""
    part = slice(start, None if isinstance(end, int) and end >= _END else end, step)
    if not _numbers(part):
        raise UnknownError("an index is computed")
    cuts = {call.axis(x, dim): part}
    call.emit("Slice", _slice(call, call.value(x), call.info(x), cuts)[2])


@function("select")
def select(call: Call, x: Any, dim: Any, index: Any) -> None:
    """Gather with one number."""
    if not isinstance(index, int):
        raise UnknownError("an index is computed")
    names = [call.value(x), call.scalar("index", index)]
    call.emit("Gather", names, {"axis": call.axis(x, dim)})


@function("index_select")
def index_select(call: Call, x: Any, dim: Any, index: Any) -> None:
    """Gather."""
    names = [call.value(x), call.value(index)]
    call.emit("Gather", names, {"axis": call.axis(x, dim)}, slots={0: "x"})


@function("flip")
def flip(call: Call, x: Any, dims: Any, *more: Any) -> None:
    """Slices with a step of -1."""
    axes = [call.axis(x, d) for d in (dims if isinstance(dims, list | tuple) else [dims])]
    axes += [call.axis(x, d) for d in more]
    inputs = [
        call.value(x),
        call.ints("starts", [-1] * len(axes)),
        call.ints("ends", [-_END] * len(axes)),
        call.ints("axes", axes),
        call.ints("steps", [-1] * len(axes)),
    ]
    call.emit("Slice", inputs)
