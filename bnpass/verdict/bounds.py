"""How far rounding a region's new weights can move its output: u * sqrt(sum W'^2 x^2).

Each new weight is off by up to u of itself, independently of the others, so that the errors add up
as their squares do. The squares come from the region itself, run on squared operands; where an
operator has no such form, the new weights are moved at random and the output's change is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from bnpass.verdict.evaluator.call import TABLE, Array, Invocation, Outputs

Function = Callable[[Invocation], Outputs]

SMALLEST = 2.0**-126
"""Below this magnitude a float32 has an absolute rounding error, not a relative one."""

# Operators that give the sum of squared terms (or at least that) when their operands are squared.
_AS_THEY_ARE = """
    Conv ConvTranspose MatMul Einsum Add Sum Mul Reshape Transpose Flatten Squeeze Unsqueeze Concat
    Split Slice Gather Expand Tile DepthToSpace SpaceToDepth AveragePool GlobalAveragePool
    ReduceMean MaxPool GlobalMaxPool ReduceMax Identity Dropout Relu Cast Constant Shape Where
""".split()  # noqa: SIM905

SQUARED: dict[str, Function] = {kind: TABLE[kind] for kind in _AS_THEY_ARE}
"""Operators on squared operands; integer operands stay what they are."""


LINEAR = frozenset(SQUARED) - {"MaxPool", "GlobalMaxPool", "ReduceMax", "Relu", "Where"} | {
    "Sub", "Neg", "Mean", "Div", "ReduceSum", "Gemm", "Pad", "BatchNormalization",
    "DequantizeLinear", "MatMulInteger", "ConvInteger",
}  # fmt: skip
"""Operators behind which a difference stays a difference."""


def _squares(*kinds: str) -> Callable[[Callable[[Invocation], Array]], None]:
    def enter(function: Callable[[Invocation], Array]) -> None:
        for kind in kinds:
            SQUARED[kind] = partial(_either, kind, function)

    return enter


def _either(kind: str, function: Callable[[Invocation], Array], call: Invocation) -> Outputs:
    """Sizes and axes are no squares: where all operands are whole numbers, the operator itself."""
    floats = any(a is not None and a.dtype.kind == "f" for a in call.inputs)
    return (function(call),) if floats else TABLE[kind](call)


@_squares("Sub")
def _sub(call: Invocation) -> Array:
    return np.asarray(call[0] + call[1])


@_squares("Neg")
def _neg(call: Invocation) -> Array:
    return call[0]


@_squares("Mean")
def _mean(call: Invocation) -> Array:
    return TABLE["Mean"](call)[0]  # type: ignore[return-value]


@_squares("ReduceSum")
def _reduce_sum(call: Invocation) -> Array:
    found = TABLE["ReduceSum"](call)[0]
    assert found is not None
    return found * (call[0].size / max(found.size, 1))


@_squares("Gemm")
def _gemm(call: Invocation) -> Array:
    alpha, beta = (float(call.attrs.get(n, 1.0)) for n in ("alpha", "beta"))
    call.attrs = {**call.attrs, "alpha": alpha * alpha, "beta": beta * beta}
    return TABLE["Gemm"](call)[0]  # type: ignore[return-value]


@_squares("LeakyRelu")
def _leaky(call: Invocation) -> Array:
    return np.asarray(call[0] * max(1.0, float(call.attrs.get("alpha", 0.01)) ** 2))


@_squares("PRelu")
def _prelu(call: Invocation) -> Array:
    return np.asarray(call[0] * np.maximum(1.0, call[1]))


@_squares("Max", "Min")
def _max(call: Invocation) -> Array:
    return TABLE["Sum"](call)[0]  # type: ignore[return-value]


@_squares("Pad")
def _pad(call: Invocation) -> Array:
    if "value" in call.attrs:
        call.attrs = {**call.attrs, "value": call.attrs["value"] ** 2}
    return TABLE["Pad"](call)[0]  # type: ignore[return-value]


@_squares("BatchNormalization")
def _batch_norm(call: Invocation) -> Array:
    """s^2 (x^2 + m^2) + b^2, of running statistics."""
    if call.attrs.get("training_mode", 0) or (call.opset < 14 and sum(call.wanted) > 1):
        raise call.refuse("squares of batch statistics")
    shape = (-1, *([1] * (call[0].ndim - 2)))
    scale, bias, mean, var = (call[i].reshape(shape) for i in range(1, 5))
    epsilon = float(np.float32(call.attrs.get("epsilon", 1e-5)))
    return np.asarray(scale / (np.sqrt(var) + epsilon) * (call[0] + mean) + bias)


@_squares("DequantizeLinear")
def _dequantize(call: Invocation) -> Array:
    """Codes are exact: the square of what they mean."""
    call.inputs = [*call.inputs[:1], np.sqrt(call[1]), *call.inputs[2:]]
    found = TABLE["DequantizeLinear"](call)[0]
    assert found is not None
    return np.square(found)


def _quantize(call: Invocation) -> Outputs:
    """Codes of a weight's magnitude."""
    call.inputs = [np.sqrt(call[0]), np.sqrt(call[1]), *call.inputs[2:]]
    return TABLE["QuantizeLinear"](call)


SQUARED_CONSTANTS: dict[str, Function] = {**SQUARED, "QuantizeLinear": _quantize}
"""The same for what is made of constants alone: there a rounding is the same in every run."""


def squared(array: Array) -> Array:
    """A constant on squared operands; what is no float stays."""
    if array.dtype.kind != "f":
        return array
    return np.square(np.maximum(np.abs(array), SMALLEST))


def unit_roundoff(kinds: set[str]) -> float:
    """Half the distance from 1 to the next number, of the coarsest of these types."""
    return max((_UNITS.get(kind, 0.0) for kind in kinds), default=0.0) or _UNITS["float32"]


_UNITS = {"float64": 2.0**-50, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""float64 with what the evaluator's own sums lose."""


def worst_ratio(difference: Array, bound: Array) -> tuple[float, int]:
    """The largest ratio of a difference to its bound, and where it is in the flat array."""
    if not difference.size:
        return 0.0, 0
    with np.errstate(all="ignore"):
        ratios = np.where(difference == 0, 0.0, difference / bound)
    ratios = np.where(np.isnan(ratios), np.inf, ratios).reshape(-1)
    place = int(ratios.argmax())
    return float(ratios[place]), place


def pooled(noise: list[Array], axis: int) -> Array:
    """The root of the mean square of random changes, over all but the first axis and a channel's.

    A single entry's changes are too few for a bound; a channel's entries are alike.
    """
    stacked = np.stack(noise)
    shared = tuple(i for i in range(1, stacked.ndim) if i not in (1, axis + 1))
    mean = np.mean(np.square(stacked), axis=(0, *shared), keepdims=True)[0]
    return np.asarray(np.sqrt(mean)) * math.sqrt(1.0)
