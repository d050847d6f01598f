"""Activations whose ONNX form torch does not have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Bound = float | Tensor | None


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """ONNX PRelu (16): the slope broadcasts to x from the right, e.g. (C, 1, 1)."""
    per_channel = slope.dim() == x.dim() - 1 and slope.dim() > 0
    if slope.numel() == 1 or (per_channel and slope.numel() == slope.shape[0] == x.shape[1]):
        return F.prelu(x, slope.reshape(-1)) if x.is_floating_point() else _prelu(x, slope)
    return _prelu(x, slope)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """ONNX Selu (22): gamma * (x above 0, else alpha * (exp(x) - 1))."""
    return gamma * F.elu(x, alpha)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """ONNX HardSigmoid (22): clip(alpha x + beta, 0, 1)."""
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def swish(x: Tensor, alpha: float) -> Tensor:
    """ONNX Swish (24): x * sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


def shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    """ONNX Shrink (9)."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


def clip(x: Tensor, low: Bound, high: Bound) -> Tensor:
    """ONNX Clip (13) with computed bounds: the upper one wins where they cross."""
    for bound, cut in ((low, torch.maximum), (high, torch.minimum)):
        if bound is not None:
            x = cut(x, torch.as_tensor(bound, dtype=x.dtype, device=x.device).reshape(()))
    return x


def hardmax(x: Tensor, axis: int) -> Tensor:
    """ONNX Hardmax (13): 1 at the first maximum along ``axis``."""
    if x.numel() == 0:
        return x
    index = x.argmax(dim=axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, index, 1.0)


def softmax_from(x: Tensor, axis: int) -> Tensor:
    """ONNX Softmax (11): over all axes from ``axis`` on."""
    return F.softmax(_matrix(x, axis), dim=1).reshape(x.shape)


def log_softmax_from(x: Tensor, axis: int) -> Tensor:
    """ONNX LogSoftmax (11): over all axes from ``axis`` on."""
    return F.log_softmax(_matrix(x, axis), dim=1).reshape(x.shape)


def hardmax_from(x: Tensor, axis: int) -> Tensor:
    """ONNX Hardmax (11): over all axes from ``axis`` on."""
    return hardmax(_matrix(x, axis), 1).reshape(x.shape)


def _matrix(x: Tensor, axis: int) -> Tensor:
    axis = axis % x.dim()
    rows = int(torch.Size(x.shape[:axis]).numel())
    return x.reshape(rows, int(torch.Size(x.shape[axis:]).numel()))
