"""Normalisations, by running statistics and by those of the value at hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, Outputs, one, operator


def _epsilon(call: Invocation) -> float:
    return float(np.float32(call.attrs.get("epsilon", 1e-5)))


def _channels(a: Array, rank: int) -> Array:
    """(C,) shaped to stand against (N, C, ...)."""
    return a.reshape(-1, *([1] * (rank - 2))) if rank > 1 else a


@operator("BatchNormalization")
def batch_norm(call: Invocation) -> Outputs:
    """Running statistics, unless training_mode is 1, or before opset 14 more outputs are read."""
    x, scale, bias, mean, var = (call[i] for i in range(5))
    training = bool(call.attrs.get("training_mode", 0))
    if call.opset < 14:
        training = call.opset >= 7 and sum(call.wanted) > 1
    if not training:
        return (_normalised(call, x, scale, bias, mean, var),)
    axes = tuple(i for i in range(x.ndim) if i != 1)
    here, spread = x.mean(axes), x.var(axes)
    momentum = float(np.float32(call.attrs.get("momentum", 0.9)))
    new = [momentum * old + (1 - momentum) * now for old, now in ((mean, here), (var, spread))]
    return (_normalised(call, x, scale, bias, here, spread), *new)


def _normalised(call: Invocation, x: Array, *parts: Array) -> Any:
    if any(p.size not in (1, x.shape[1] if x.ndim > 1 else 1) for p in parts):
        raise ValueError(f"{parts[0].size} parameters for a value of {x.shape}")
    scale, bias, mean, var = (_channels(p, x.ndim) for p in parts)
    return (x - mean) / np.sqrt(var + _epsilon(call)) * scale + bias


@operator("InstanceNormalization")
@one
def _instance_norm(call: Invocation) -> Any:
    x = call[0]
    axes = tuple(range(2, x.ndim))
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + _epsilon(call))
    return y * _channels(call[1], x.ndim) + _channels(call[2], x.ndim)


@operator("GroupNormalization")
@one
def _group_norm(call: Invocation) -> Any:
    x, groups = call[0], int(call.attrs["num_groups"])
    parts = x.reshape(x.shape[0], groups, -1)
    spread = np.sqrt(parts.var(2, keepdims=True) + _epsilon(call))
    y = (parts - parts.mean(2, keepdims=True)) / spread
    scale, bias = call[1], call[2]
    if call.opset < 21:  # one number a group
        scale, bias = (np.repeat(a, x.shape[1] // groups) for a in (scale, bias))
    return y.reshape(x.shape) * _channels(scale, x.ndim) + _channels(bias, x.ndim)


@operator("LayerNormalization")
def _layer_norm(call: Invocation) -> Outputs:
    x = call[0]
    axis = int(call.attrs.get("axis", -1)) % x.ndim
    axes = tuple(range(axis, x.ndim))
    mean = x.mean(axes, keepdims=True)
    inverse = 1 / np.sqrt(x.var(axes, keepdims=True) + _epsilon(call))
    y = (x - mean) * inverse * call[1]
    bias = call.get(2)
    return (y if bias is None else y + bias, mean, inverse)


@operator("RMSNormalization")
@one
def _rms_norm(call: Invocation) -> Any:
    x = call[0]
    axes = tuple(range(int(call.attrs.get("axis", -1)) % x.ndim, x.ndim))
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + _epsilon(call)) * call[1]


@operator("MeanVarianceNormalization")
@one
def _mean_variance(call: Invocation) -> Any:
    x, axes = call[0], tuple(call.attrs.get("axes", (0, 2, 3)))
    return (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-9)


@operator("LpNormalization")
@one
def _lp(call: Invocation) -> Any:
    x, axis, p = call[0], int(call.attrs.get("axis", -1)), int(call.attrs.get("p", 2))
    size = (np.abs(x) ** p).sum(axis, keepdims=True) ** (1 / p)
    return np.divide(x, size, out=np.zeros_like(x), where=size != 0)


@operator("LRN")
@one
def _lrn(call: Invocation) -> Any:
    x, size = call[0], int(call.attrs["size"])
    alpha, beta = float(call.attrs.get("alpha", 1e-4)), float(call.attrs.get("beta", 0.75))
    low, square = (size - 1) // 2, x * x
    sums = np.zeros_like(x)
    for channel in range(x.shape[1]):
        near = slice(max(channel - low, 0), min(channel + size - low, x.shape[1]))
        sums[:, channel] = square[:, near].sum(1)
    return x / (float(call.attrs.get("bias", 1.0)) + alpha / size * sums) ** beta
