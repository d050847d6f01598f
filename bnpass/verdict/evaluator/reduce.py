"""Reductions, softmax and its kin, sums over many operands."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce as fold_left

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, Outputs, one, operator

_REDUCTIONS: dict[str, Callable[..., Array]] = {
    "ReduceMean": np.mean,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceL1": lambda x, **k: np.abs(x).sum(**k),
    "ReduceL2": lambda x, **k: np.sqrt(np.square(x).sum(**k)),
    "ReduceSumSquare": lambda x, **k: np.square(x).sum(**k),
    "ReduceLogSum": lambda x, **k: np.log(np.sum(x, **k)),
    "ReduceLogSumExp": np.logaddexp.reduce,
}


def _reduction(function: Callable[..., Array]) -> Callable[[Invocation], Array]:
    def run(call: Invocation) -> Array:
        x, axes = call[0], call.ints(1, "axes")
        if not axes:
            if call.attrs.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        keep = bool(call.attrs.get("keepdims", 1))
        kind = x.dtype
        found = function(x, axis=tuple(a % x.ndim for a in axes) if x.ndim else (), keepdims=keep)
        return np.asarray(found).astype(kind if kind.kind in "iu" else np.float64, copy=False)

    return run


for _kind, _function in _REDUCTIONS.items():
    operator(_kind)(one(_reduction(_function)))


def _arg(function: Callable[..., Array]) -> Callable[[Invocation], Array]:
    def run(call: Invocation) -> Array:
        x, axis = call[0], int(call.attrs.get("axis", 0)) % max(call[0].ndim, 1)
        if call.attrs.get("select_last_index", 0):
            found = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis)
        else:
            found = function(x, axis=axis)
        keep = bool(call.attrs.get("keepdims", 1))
        return np.expand_dims(found, axis) if keep else np.asarray(found)

    return run


operator("ArgMax")(one(_arg(np.argmax)))
operator("ArgMin")(one(_arg(np.argmin)))


def _over_class(function: Callable[[Array, int], Array]) -> Callable[[Invocation], Array]:
    """Since opset 13 along an axis; before, along all axes from it on, as one."""

    def run(call: Invocation) -> Array:
        x = call[0]
        if call.opset >= 13:
            return function(x, int(call.attrs.get("axis", -1)))
        axis = int(call.attrs.get("axis", 1)) % max(x.ndim, 1)
        flat = x.reshape(int(np.prod(x.shape[:axis])), -1)
        return function(flat, 1).reshape(x.shape)

    return run


def _softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def _log_softmax(x: Array, axis: int) -> Array:
    x = x - x.max(axis, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis, keepdims=True)))


def _hardmax(x: Array, axis: int) -> Array:
    largest = np.expand_dims(x.argmax(axis), axis)
    y = np.zeros_like(x)
    np.put_along_axis(y, largest, 1.0, axis)
    return y


operator("Softmax")(one(_over_class(_softmax)))
operator("LogSoftmax")(one(_over_class(_log_softmax)))
operator("Hardmax")(one(_over_class(_hardmax)))


def _many(function: Callable[[Array, Array], Array]) -> Callable[[Invocation], Array]:
    return lambda call: fold_left(function, [a for a in call.inputs if a is not None])


operator("Sum")(one(_many(np.add)))
operator("Max")(one(_many(np.maximum)))
operator("Min")(one(_many(np.minimum)))
operator("Mean")(one(lambda call: _many(np.add)(call) / len(call.inputs)))


@operator("CumSum")
@one
def _cumsum(call: Invocation) -> Array:
    x, axis = call[0], int(call[1].reshape(-1)[0])
    backward = bool(call.attrs.get("reverse", 0))
    x = np.flip(x, axis) if backward else x
    y = np.cumsum(x, axis, dtype=x.dtype)
    y = y - x if call.attrs.get("exclusive", 0) else y
    return np.flip(y, axis) if backward else y


@operator("TopK")
def _top_k(call: Invocation) -> Outputs:
    x, axis = call[0], int(call.attrs.get("axis", -1)) % call[0].ndim
    k = int(call[1].reshape(-1)[0]) if call.get(1) is not None else int(call.attrs["k"])
    if call.attrs.get("largest", 1):  # stable, without a minus sign that unsigned types lack
        backward = np.argsort(np.flip(x, axis), axis, kind="stable")
        order = x.shape[axis] - 1 - np.flip(backward, axis)
    else:
        order = np.argsort(x, axis, kind="stable")
    order = order.take(range(k), axis)
    return np.take_along_axis(x, order, axis), order
