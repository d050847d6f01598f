"""What exporters compute sizes with, on numbers of which some are known.

Numbers are object arrays: int, bool or float where an entry is the same in every run, a
:class:`Product` where it is the size of a free axis or a multiple of it, None where nothing is
known. A result of None says that nothing is known of the value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bnpass.ir.extents import Extent, Product, over, plus, times

Numbers = np.ndarray[Any, np.dtype[Any]]
"""An object array with at most :data:`LARGEST` entries."""

LARGEST = 256
"""Entries up to which integers are followed: shapes and axes have far fewer."""

_WHOLE = 2**24  # up to here float32 holds every whole number

Attributes = Mapping[str, Any]

SizeRule = Callable[[Attributes, Sequence["Numbers | None"]], "Numbers | None"]


def numbers(array: np.ndarray) -> Numbers:
    """An array of numbers as Python has them."""
    made = np.empty(array.shape, object)
    made[...] = array.astype(object) if array.ndim else array.item()
    return made


def evaluate(
    kind: str, attrs: Attributes, inputs: Sequence[Numbers | None], floating: bool = False
) -> Numbers | None:
    """The output of an operator of shape arithmetic; None where it is none or nothing is known.

    Args:
        kind: one of ONNX's own operators.
        attrs: its attributes; ``to`` of a Cast is numpy's name of a type, ``value`` of a
            ConstantOfShape a number.
        inputs: what is known of its inputs.
        floating: its output is of a floating type.
    """
    rule = RULES.get(kind)
    if rule is None:
        return None
    try:
        made = rule(attrs, inputs)
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return None
    if made is None or made.size > LARGEST:
        return None
    return _as_floats(made) if floating else made


def _as_floats(value: Numbers) -> Numbers:
    return _lift(lambda e: float(e) if _exact(e) else e)({}, [value])  # type: ignore[return-value]


def is_settled(value: Numbers) -> bool:
    """Whether every entry is known."""
    return not any(v is None or isinstance(v, Product) for v in value.flat)


def whole(value: Numbers | None) -> list[int] | None:
    """The entries as a list where every one is known, and a whole number."""
    if value is None or not is_settled(value):
        return None
    if any(isinstance(v, float) and not v.is_integer() for v in value.flat):  # inf, too
        return None
    return [int(v) for v in value.flat]


# --- elementwise


def _lift(function: Callable[..., Any]) -> SizeRule:
    def rule(_: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
        known = [v for v in inputs if v is not None]
        if len(known) < len(inputs):
            return None
        shape = np.broadcast_shapes(*(v.shape for v in known))
        result = np.empty(shape, object)
        for place, entries in zip(
            np.ndindex(shape),
            zip(*(np.broadcast_to(v, shape).flat for v in known), strict=True),
            strict=True,
        ):
            result[place] = function(*entries)
        return result

    return rule


def _exact(entry: Any) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool)


def _divide(a: Any, b: Any) -> Any:
    """ONNX divides integers towards zero."""
    if _exact(a) and _exact(b):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    return _number(a, b, over, operator.truediv)


def _sized(entry: Any) -> bool:
    return _exact(entry) or isinstance(entry, Product)


def _number(a: Any, b: Any, exact: Callable[[Any, Any], Any], plain: Callable[..., Any]) -> Any:
    """Sizes by an exact rule, floats where single and double precision agree."""
    if isinstance(a, float) and isinstance(b, float):
        single, double = float(plain(np.float32(a), np.float32(b))), float(plain(a, b))
        return double if single == double else None
    a, b = _size(a), _size(b)
    return None if a is None or b is None else exact(a, b)


def _size(entry: Any) -> Extent:
    """Whole floats stand for sizes too: exporters divide those as floats."""
    if isinstance(entry, float):
        return int(entry) if entry.is_integer() and abs(entry) < _WHOLE else None
    return entry if _sized(entry) else None


def _minus(a: Any, b: Any) -> Extent:
    return plus(a, b, -1)


def _rounded(function: Callable[[float], int]) -> Callable[[Any], Any]:
    return lambda a: float(function(a)) if isinstance(a, float) else a if _sized(a) else None


def _known_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """None unless all operands are plain numbers; floats of a vector stay unknown."""

    def apply(*entries: Any) -> Any:
        plain = all(isinstance(e, int) for e in entries)
        return function(*entries) if plain else None

    return apply


def _equal(a: Any, b: Any) -> bool | None:
    """Sizes are no negative numbers, and equal products are equal."""
    if a is None or b is None or isinstance(a, float) or isinstance(b, float):
        return None
    if isinstance(a, Product) or isinstance(b, Product):
        if a == b:
            return True
        return False if any(_exact(e) and e < 0 for e in (a, b)) else None
    return bool(a == b)


def _where(condition: Any, a: Any, b: Any) -> Any:
    if condition is None:
        return a if a is not None and a == b else None
    return a if condition else b


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*entries: Any) -> Any:
        if len(set(entries)) == 1:
            return entries[0]
        return function(entries) if all(_exact(e) for e in entries) else None

    return apply


def _cast(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    to = attrs.get("to")

    def cast(entry: Any) -> Any:
        if to == "bool":
            return bool(entry) if isinstance(entry, int) else None
        if to not in _WIDE or isinstance(entry, Product) or entry is None:
            return entry if to in _WIDE else None
        return int(entry) if abs(entry) < _WHOLE else None

    return _lift(cast)(attrs, inputs)


_WIDE = frozenset({"int64", "int32", "float32", "float64"})


def _same(_: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    return inputs[0]


# --- structure


def _gather(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    data, index = inputs[0], inputs[1]
    if data is None or index is None or (where := whole(index)) is None:
        return None
    places = np.array(where, np.int64).reshape(index.shape)
    return _array(np.take(data, places, axis=attrs.get("axis", 0)))


def _concat(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    known = [v for v in inputs if v is not None]
    if len(known) < len(inputs):
        return None
    return np.concatenate([np.atleast_1d(v) for v in known], axis=attrs.get("axis", 0))


def _axes(attrs: Attributes, inputs: Sequence[Numbers | None]) -> list[int] | None:
    if len(inputs) > 1:
        return whole(inputs[1])
    return [int(a) for a in attrs.get("axes", [])]


def _squeeze(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    axes = _axes(attrs, inputs)
    if inputs[0] is None or axes is None:
        return None
    return _array(np.squeeze(inputs[0], tuple(axes) or None))


def _unsqueeze(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    axes = _axes(attrs, inputs)
    return None if inputs[0] is None or not axes else np.expand_dims(inputs[0], tuple(axes))


def _slice(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    data = inputs[0]
    if data is None:
        return None
    if len(inputs) == 1:  # before opset 10
        starts, ends = attrs.get("starts"), attrs.get("ends")
        axes, steps = attrs.get("axes"), None
    else:
        starts, ends, axes, steps = (*map(whole, inputs[1:]), None, None)[:4]
    if starts is None or ends is None:
        return None
    if any(v is None for v in inputs[3:]):
        return None
    for i, axis in enumerate(axes or range(len(starts))):
        step = steps[i] if steps else 1
        stop = None if step < 0 and ends[i] < -data.shape[axis] else ends[i]
        data = data[(slice(None),) * (axis % data.ndim) + (slice(starts[i], stop, step),)]
    return data


def _reshape(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    target = whole(inputs[1]) if len(inputs) > 1 else list(attrs.get("shape", []))
    return None if inputs[0] is None or target is None else inputs[0].reshape(target)


def _transpose(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    return None if inputs[0] is None else inputs[0].transpose(attrs.get("perm"))


def _tile(_: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    data, repeats = inputs[0], whole(inputs[1])
    if data is None or repeats is None or math.prod(repeats) * data.size > LARGEST:
        return None
    return np.tile(data, repeats)


def _expand(_: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    target = whole(inputs[1])
    if inputs[0] is None or target is None or np.prod(target) > LARGEST:
        return None
    shape = np.broadcast_shapes(inputs[0].shape, tuple(target))
    return np.array(np.broadcast_to(inputs[0], shape), object)


def _constant_of_shape(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    target = whole(inputs[0])
    if target is None or np.prod(target) > LARGEST:
        return None
    result = np.empty(target, object)
    result[...] = attrs.get("value", 0.0)
    return result


def _range(_: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    ends = [whole(v) for v in inputs]
    exact = all(_exact(v.item()) for v in inputs if v is not None)
    if any(e is None for e in ends) or not exact:
        return None
    start, stop, step = (e[0] for e in ends if e is not None)
    return numbers(np.arange(start, stop, step)) if abs(stop - start) <= LARGEST else None


def _reduce_prod(attrs: Attributes, inputs: Sequence[Numbers | None]) -> Numbers | None:
    value = inputs[0]
    if value is None or value.ndim != 1:
        return None
    total: Any = 1
    for entry in value:
        total = times(total, entry) if _sized(entry) and total is not None else None
    return _array(np.array(total, object).reshape((1,) if attrs.get("keepdims", 1) else ()))


def _array(value: Any) -> Numbers:
    """numpy gives a single entry back bare."""
    if isinstance(value, np.ndarray):
        return value
    made = np.empty((), object)
    made[()] = value
    return made


RULES: dict[str, SizeRule] = {
    "Add": _lift(lambda a, b: _number(a, b, plus, operator.add)),
    "And": _lift(_known_only(operator.and_)),
    "Cast": _cast,
    "Ceil": _lift(_rounded(math.ceil)),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _lift(_divide),
    "Equal": _lift(_equal),
    "Expand": _expand,
    "Floor": _lift(_rounded(math.floor)),
    "Gather": _gather,
    "Greater": _lift(_known_only(operator.gt)),
    "GreaterOrEqual": _lift(_known_only(operator.ge)),
    "Identity": _same,
    "Less": _lift(_known_only(operator.lt)),
    "LessOrEqual": _lift(_known_only(operator.le)),
    "Max": _lift(_extreme(max)),
    "Min": _lift(_extreme(min)),
    "Mod": _lift(_known_only(lambda a, b: a % b)),
    "Mul": _lift(lambda a, b: _number(a, b, times, operator.mul)),
    "Neg": _lift(_known_only(operator.neg)),
    "Not": _lift(_known_only(lambda a: not a)),
    "Or": _lift(_known_only(operator.or_)),
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _lift(lambda a, b: _number(a, b, _minus, operator.sub)),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _lift(_where),
}
