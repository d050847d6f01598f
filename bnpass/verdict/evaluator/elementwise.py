"""Elementwise operators: arithmetic, comparisons, activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnpass.onnx_model.signature import dtype_of
from bnpass.verdict.evaluator.call import Array, Invocation, Outputs, one, operator

_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """The error function."""
    return np.asarray(_erf(x)).astype(np.float64)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return np.logaddexp(x, 0)


_UNARY: dict[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x, "Neg": np.negative, "Abs": np.abs, "Sqrt": np.sqrt, "Exp": np.exp,
    "Log": np.log, "Reciprocal": lambda x: 1 / x, "Floor": np.floor, "Ceil": np.ceil,
    "Round": np.rint, "Sign": np.sign, "Not": np.logical_not, "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh, "Sigmoid": sigmoid, "Erf": erf, "Softplus": softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)), "Mish": lambda x: x * np.tanh(softplus(x)),
    "Sin": np.sin, "Cos": np.cos, "Tan": np.tan, "Asin": np.arcsin, "Acos": np.arccos,
    "Atan": np.arctan, "Sinh": np.sinh, "Cosh": np.cosh, "Asinh": np.arcsinh,
    "Acosh": np.arccosh, "Atanh": np.arctanh, "IsNaN": np.isnan, "BitwiseNot": np.invert,
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}  # fmt: skip


def _divide(a: Array, b: Array) -> Any:
    if a.dtype.kind in "iu":  # towards zero, as in C
        return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)
    return np.asarray(a / b)


_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Equal": np.equal,
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less,
    "LessOrEqual": np.less_equal, "And": np.logical_and, "Or": np.logical_or,
    "Xor": np.logical_xor, "PRelu": lambda x, s: np.where(x < 0, s * x, x),
    "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor,
}  # fmt: skip

for _kind, _unary in _UNARY.items():
    operator(_kind)(one(lambda call, f=_unary: f(call[0])))  # type: ignore[misc]
for _kind, _binary in _BINARY.items():
    operator(_kind)(one(lambda call, f=_binary: f(call[0], call[1])))  # type: ignore[misc]


def _number(call: Invocation, name: str, default: float) -> float:
    return float(np.float32(call.attrs.get(name, default)))


@operator("Pow")
@one
def _pow(call: Invocation) -> Array:
    base, power = call[0], call[1]
    return np.power(base.astype(np.float64), power).astype(base.dtype)


@operator("Mod")
@one
def _mod(call: Invocation) -> Array:
    return np.fmod(call[0], call[1]) if call.attrs.get("fmod", 0) else np.mod(call[0], call[1])


@operator("LeakyRelu")
@one
def _leaky(call: Invocation) -> Array:
    return np.where(call[0] < 0, _number(call, "alpha", 0.01) * call[0], call[0])


@operator("Elu")
@one
def _elu(call: Invocation) -> Array:
    x = call[0]
    return np.where(x < 0, _number(call, "alpha", 1.0) * np.expm1(np.minimum(x, 0)), x)


@operator("Celu")
@one
def _celu(call: Invocation) -> Array:
    x, alpha = call[0], _number(call, "alpha", 1.0)
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


@operator("Selu")
@one
def _selu(call: Invocation) -> Array:
    x, alpha = call[0], _number(call, "alpha", 1.67326319217681884765625)
    gamma = _number(call, "gamma", 1.05070102214813232421875)
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@operator("HardSigmoid")
@one
def _hard_sigmoid(call: Invocation) -> Any:
    return np.clip(_number(call, "alpha", 0.2) * call[0] + _number(call, "beta", 0.5), 0, 1)


@operator("ThresholdedRelu")
@one
def _thresholded(call: Invocation) -> Array:
    return np.where(call[0] > _number(call, "alpha", 1.0), call[0], 0)


@operator("Shrink")
@one
def _shrink(call: Invocation) -> Array:
    x, bias, lambd = call[0], _number(call, "bias", 0.0), _number(call, "lambd", 0.5)
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0))


@operator("Gelu")
@one
def _gelu(call: Invocation) -> Any:
    x = call[0]
    if call.attrs.get("approximate", "none") == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


@operator("Swish")
@one
def _swish(call: Invocation) -> Any:
    return call[0] * sigmoid(_number(call, "alpha", 1.0) * call[0])


@operator("Clip")
@one
def _clip(call: Invocation) -> Array:
    x = call[0]
    low = call.get(1) if call.get(1) is not None else call.attrs.get("min")
    high = call.get(2) if call.get(2) is not None else call.attrs.get("max")
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


@operator("IsInf")
@one
def _is_inf(call: Invocation) -> Array:
    x = call[0]
    found = np.zeros(x.shape, bool)
    if call.attrs.get("detect_positive", 1):
        found |= x == np.inf
    if call.attrs.get("detect_negative", 1):
        found |= x == -np.inf
    return found


@operator("BitShift")
@one
def _bit_shift(call: Invocation) -> Array:
    left = call.attrs["direction"] == "LEFT"
    return np.left_shift(call[0], call[1]) if left else np.right_shift(call[0], call[1])


@operator("Where")
@one
def _where(call: Invocation) -> Array:
    return np.where(call[0], call[1], call[2])


@operator("Dropout")
def _dropout(call: Invocation) -> Outputs:
    live = call.get(2)
    ratio = call.get(1)
    if live is not None and bool(live) and (ratio is None or float(ratio) > 0):
        raise call.refuse("a Dropout that is live")
    return call[0], np.ones(call[0].shape, bool)


@operator("Cast")
@one
def _cast(call: Invocation) -> Array:
    return cast(call[0], dtype_of(int(call.attrs["to"])))


@operator("CastLike")
@one
def _cast_like(call: Invocation) -> Array:
    return cast(call[0], call[1].dtype)


def cast(x: Array, kind: np.dtype[np.generic]) -> Array:
    """To integers towards zero; to any floating type as float64."""
    if kind.kind == "f" or "float" in kind.name:
        return x.astype(np.float64)
    if kind.kind in "iu" and x.dtype.kind == "f":
        return np.trunc(x).astype(np.int64).astype(kind)
    return x.astype(kind)
