"""Functions of one value: the rows of ``bnpass.importer.activations``, and others."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.targets import FUNCTIONS, MODULES, Handler, exact, function, module
from bnpass.importer.activations import ACTIVATIONS

_MODULES: dict[type[nn.Module], str] = {
    nn.Softmax: "Softmax",
    nn.Softmax2d: "Softmax",
    nn.LogSoftmax: "LogSoftmax",
    **{cls: row.kind for row in ACTIVATIONS for cls in row.modules},
}

_FUNCTIONS = {
    **{name: row.kind for row in ACTIVATIONS for name in row.names},
    "softmax": "Softmax",
    "_softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "_log_softmax": "LogSoftmax",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "erf": "Erf",
    "abs": "Abs",
    "reciprocal": "Reciprocal",
    "sin": "Sin",
    "cos": "Cos",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
}


def _module_row(kind: str) -> Handler:
    def row(call: Call, x: Any) -> None:
        call.emit(kind, [call.value(x)])

    return row


def _function_row(kind: str) -> Handler:
    def row(call: Call, x: Any, *args: Any, **kwargs: Any) -> None:
        del args
        if "out" in kwargs:
            raise UnknownError("it writes into out")
        call.emit(kind, [call.value(x)])

    return row


MODULES.update({cls: _module_row(kind) for cls, kind in _MODULES.items()})
FUNCTIONS.update({name: _function_row(kind) for name, kind in _FUNCTIONS.items()})
for _activation in ACTIVATIONS:
    exact(*_activation.calls)(_function_row(_activation.kind))


@module(nn.PReLU)
def prelu_module(call: Call, x: Any) -> None:
    """PRelu."""
    call.emit("PRelu", [call.value(x), call.parameter("weight")])


@function("prelu", "_prelu_kernel")
def prelu(call: Call, x: Any, weight: Any) -> None:
    """PRelu."""
    call.emit("PRelu", [call.value(x), call.value(weight)])


def clip(call: Call, x: Any, low: Any, high: Any) -> None:
    """Clip, with bounds that are numbers."""
    names = [call.value(x)]
    dtype = call.info(x).dtype
    for role, bound in (("min", low), ("max", high)):
        if bound is None:
            names.append("")
        elif isinstance(bound, int | float):
            names.append(call.constant(role, np.asarray(bound, np.float64), dtype))
        else:
            names.append(call.value(bound))
    call.emit("Clip", names)


@module(nn.ReLU6, nn.Hardtanh)
def hardtanh_module(call: Call, x: Any) -> None:
    """Clip."""
    m: Any = call.module
    clip(call, x, m.min_val, m.max_val)


@function("relu6")
def relu6(call: Call, x: Any, inplace: bool = False) -> None:
    """Clip to [0, 6]."""
    del inplace
    clip(call, x, 0.0, 6.0)


@function("hardtanh")
def hardtanh(
    call: Call, x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False
) -> None:
    """Clip."""
    del inplace
    clip(call, x, min_val, max_val)


@function("clamp", "clip")
def clamp(call: Call, x: Any, min: Any = None, max: Any = None) -> None:  # noqa: A002
    """Clip."""
    clip(call, x, min, max)


@function("clamp_min")
def clamp_min(call: Call, x: Any, min: Any) -> None:  # noqa: A002
    """Clip from below."""
    clip(call, x, min, None)


@function("clamp_max")
def clamp_max(call: Call, x: Any, max: Any) -> None:  # noqa: A002
    """Clip from above."""
    clip(call, x, None, max)


def _threshold(call: Call, x: Any, value: Any) -> None:
    if value != 0:
        raise UnknownError("a value other than 0")
    call.emit("ThresholdedRelu", [call.value(x)])


@module(nn.Threshold)
def threshold_module(call: Call, x: Any) -> None:
    """ThresholdedRelu."""
    _threshold(call, x, getattr(call.module, "value", None))


@function("threshold", "_threshold")
def threshold(call: Call, x: Any, threshold: Any, value: Any, inplace: bool = False) -> None:
    """ThresholdedRelu."""
    del threshold, inplace
    _threshold(call, x, value)


@function("pow", "__pow__")
def power(call: Call, x: Any, exponent: Any) -> None:
    """Pow; also with a number as its base."""
    like = x if not isinstance(x, int | float) else exponent
    call.emit("Pow", [call.value(x, like), call.value(exponent, like)])


@function("square")
def square(call: Call, x: Any) -> None:
    """Pow 2."""
    call.emit("Pow", [call.value(x), call.value(2.0, x)])


@module(nn.Identity)
def identity_module(call: Call, x: Any) -> None:
    """Identity."""
    call.emit("Identity", [call.value(x)])
