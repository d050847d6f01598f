"""Normalisations whose ONNX form torch does not have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """ONNX BatchNormalization (15) at inference, with statistics that the model computes."""
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, eps)


def batch_norm_training(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, keep: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX BatchNormalization (15) with training_mode=1: y, running mean, running variance.

    The variance is the population's (biased), also in the running one; ``keep`` is ONNX's momentum.
    """
    dims = [d for d in range(x.dim()) if d != 1]
    wide = x.detach().to(mean.dtype)
    now_var, now_mean = torch.var_mean(wide, dim=dims, correction=0)
    cudnn = torch.backends.cudnn.enabled
    y = torch.batch_norm(x, scale, bias, None, None, True, 0.0, eps, cudnn)
    return y, mean * keep + now_mean * (1 - keep), var * keep + now_var * (1 - keep)


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """ONNX InstanceNormalization (22), of a single element too, which F.instance_norm refuses."""
    if x.numel() == 0:
        return x
    cudnn = torch.backends.cudnn.enabled
    return torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, cudnn)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX LayerNormalization (17): y, mean and 1/std over all axes from ``axis`` on."""
    dims = tuple(range(axis % x.dim(), x.dim()))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(wide, dim=dims, correction=0, keepdim=True)
    inverse = torch.rsqrt(var + eps)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_norm(x: Tensor, scale: Tensor, axis: int, eps: float) -> Tensor:
    """ONNX RMSNormalization (23): x / sqrt(mean(x^2) + eps) * scale."""
    dims = tuple(range(axis % x.dim(), x.dim()))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = torch.rsqrt(wide.square().mean(dim=dims, keepdim=True) + eps)
    return (wide * inverse).to(x.dtype) * scale


def group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """ONNX GroupNormalization (21), of a single element too, which F.group_norm refuses."""
    return torch.group_norm(x, num_groups, weight, bias, eps, torch.backends.cudnn.enabled)


def group_norm_per_group(x: Tensor, groups: int, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
    """ONNX GroupNormalization (18): scale and bias have one entry a group."""
    each = x.shape[1] // groups
    return group_norm(
        x, groups, scale.repeat_interleave(each), bias.repeat_interleave(each), eps
    )


def mean_variance_norm(x: Tensor, axes: Sequence[int]) -> Tensor:
    """ONNX MeanVarianceNormalization (13)."""
    var, mean = torch.var_mean(x, dim=tuple(axes), correction=0, keepdim=True)
    return (x - mean) / (torch.sqrt(var) + 1e-9)


def lp_norm(x: Tensor, axis: int, p: int) -> Tensor:
    """ONNX LpNormalization (22): 0 where the norm is 0."""
    norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)

