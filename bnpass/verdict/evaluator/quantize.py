"""QuantizeLinear, DequantizeLinear and operators on codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnpass.onnx_model.signature import dtype_of
from bnpass.verdict.evaluator.call import Array, Invocation, Outputs, one, operator
from bnpass.verdict.evaluator.conv import convolve


def _against(call: Invocation, a: Array, x: Array, axis: int) -> Array:
    """A scale or zero point shaped to stand against x: one number, one an axis, or one a block."""
    block = int(call.attrs.get("block_size", 0))
    if block and a.ndim == x.ndim:
        return np.repeat(a, block, axis).take(range(x.shape[axis]), axis)
    if a.size == 1:
        return a.reshape(())
    shape = [1] * x.ndim
    shape[axis] = a.size
    return a.reshape(shape)


def _limits(kind: np.dtype[np.generic]) -> tuple[int, int]:
    signed = not kind.name.startswith("u")
    bits = int(kind.name.removeprefix("u").removeprefix("int"))
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def quantise(y: Array, zero: Array, kind: np.dtype[np.generic]) -> Array:
    """Round half to even, add the zero point, saturate."""
    low, high = _limits(kind)
    codes: Array = np.clip(np.rint(y) + zero, low, high)
    return codes.astype(np.int64).astype(kind)


@operator("QuantizeLinear")
@one
def _quantize(call: Invocation) -> Array:
    x, zero = call[0], call.get(2)
    axis = int(call.attrs.get("axis", 1))
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if zero is None and call.attrs.get("output_dtype", 0):
        kind = dtype_of(int(call.attrs["output_dtype"]))
    if kind.kind == "f":
        raise call.refuse("a floating code")
    scale = _against(call, call[1], x, axis)
    offset = np.zeros(()) if zero is None else _against(call, zero.astype(np.float64), x, axis)
    return quantise(x / scale, offset, kind)


@operator("DequantizeLinear")
@one
def _dequantize(call: Invocation) -> Any:
    x, zero = call[0].astype(np.float64), call.get(2)
    axis = int(call.attrs.get("axis", 1))
    if zero is not None:
        x = x - _against(call, zero.astype(np.float64), x, axis)
    return x * _against(call, call[1], x, axis)


@operator("DynamicQuantizeLinear")
def _dynamic(call: Invocation) -> Outputs:
    x = call[0]
    low, high = min(float(x.min(initial=0)), 0.0), max(float(x.max(initial=0)), 0.0)
    scale = (high - low) / 255
    zero = quantise(np.array(-low / scale if scale else 0.0), np.zeros(()), np.dtype(np.uint8))
    codes = quantise(x / scale if scale else x, zero.astype(np.float64), np.dtype(np.uint8))
    return codes, np.array(scale), zero


def _real(call: Invocation, at: int, axis: int | None = None) -> Array:
    """Three inputs (codes, scale, zero point) as numbers."""
    codes, scale, zero = call[at].astype(np.float64), call[at + 1], call[at + 2].astype(np.float64)
    if scale.size > 1 and axis is not None:
        shape = [1] * codes.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    return (codes - zero) * scale


@operator("QLinearMatMul")
@one
def _qlinear_matmul(call: Invocation) -> Array:
    y = np.matmul(_real(call, 0, -2), _real(call, 3, -1))
    return quantise(y / call[6], call[7].astype(np.float64), call[7].dtype)


@operator("QLinearConv")
@one
def _qlinear_conv(call: Invocation) -> Any:
    y = convolve(call, _real(call, 0), _real(call, 3, 0))
    bias = call.get(8)
    if bias is not None:
        real = bias.astype(np.float64) * call[1] * call[4].reshape(-1)
        y = y + real.reshape(-1, *([1] * (y.ndim - 2)))
    return quantise(y / call[6], call[7].astype(np.float64), call[7].dtype)
