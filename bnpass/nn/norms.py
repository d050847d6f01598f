"""The batch normalisations of a network, and other ways for them to normalise while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

Tensor = torch.Tensor
Normalise = Callable[[Any, Tensor], Tensor]
"""Takes a BN module and its input ``(n, c, ...)``, gives its output."""

_FROZEN = "bnpass_frozen"


def batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """The BN modules with running statistics, by path; a shared one once."""
    return {name: m for name, m in module.named_modules() if _is_norm(m)}


def _is_norm(module: nn.Module) -> bool:
    held = getattr(module, "running_mean", None) is not None
    held = held and getattr(module, "running_var", None) is not None and hasattr(module, "eps")
    return held and (isinstance(module, _BatchNorm) or "InstanceNorm" not in type(module).__name__)


def plain_forward(norm: nn.Module) -> bool:
    """Whether a norm computes what torch's own does, and nothing else."""
    forward = type(norm).forward
    return forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) or (
        type(norm).__module__ == "bnpass.importer.modules")


def freeze(module: nn.Module) -> nn.Module:
    """Keep every BN of a network as it is: statistics, gamma and beta (for fine-tuning).

    A frozen BN stays in eval mode whatever ``module.train()`` says.

    :func:`bnpass.training.train` and :func:`bnpass.training.calibrate` leave a frozen BN alone.
    Returns the module.
    """
    for norm in batch_norms(module).values():
        if not getattr(norm, _FROZEN, False):
            norm.register_forward_pre_hook(_stay_frozen)
        setattr(norm, _FROZEN, True)
        norm.eval()
        for parameter in norm.parameters(recurse=False):
            parameter.requires_grad = False
    return module


def _stay_frozen(norm: nn.Module, _inputs: Any) -> None:
    norm.training = False


def frozen(module: nn.Module) -> set[str]:
    """Paths of the BNs that the user froze: :func:`freeze`, or ``bn.eval()`` in a training net."""
    return {
        name for name, norm in batch_norms(module).items()
        if getattr(norm, _FROZEN, False) or (module.training and not norm.training)
    }


@contextmanager
def normalising_with(norms: list[nn.Module], normalise: Normalise) -> Iterator[None]:
    """Let these modules normalise in another way for a while; afterwards they are as before."""
    before = [norm.__dict__.get("forward") for norm in norms]
    for norm in norms:
        norm.forward = _bound(normalise, norm)
    try:
        yield
    finally:
        for norm, forward in zip(norms, before, strict=True):
            if forward is None:
                norm.__dict__.pop("forward", None)
            else:
                norm.forward = forward


def _bound(normalise: Normalise, norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: normalise(norm, x)


def by_batch(norm: Any, x: Tensor) -> Tensor:
    """Normalise by the batch alone and leave the running statistics untouched."""
    return F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


def by_ghost_batches(size: int) -> Normalise:
    """Normalise parts of about ``size`` samples each by itself (Hoffer 2017, ghost batches)."""

    def normalise(norm: Any, x: Tensor) -> Tensor:
        if not norm.training:
            return _own(norm, x)
        parts = max(1, min(round(len(x) / size), len(x) // 2))  # one sample alone has no variance
        return torch.cat([_own(norm, part) for part in x.tensor_split(parts)])

    return normalise


def _own(norm: Any, x: Tensor) -> Tensor:
    out: Tensor = type(norm).forward(norm, x)
    return out


def across_processes(norm: Any, x: Tensor) -> Tensor:
    """Normalise by the batch of all processes together; what SyncBatchNorm does on a GPU only.

    The ranks' parts may differ in size. Mean and variance are summed in two rounds, so that a large
    mean costs no precision; the gradient flows through both.
    """
    if not norm.training:
        return _own(norm, x)
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = values.new_full((1,), x.numel() / x.shape[1])
    sums = _all_reduce(torch.cat([values.sum(axes), count]))
    total = sums[-1].detach()
    mean = sums[:-1] / total
    centred = values - mean.reshape(shape)
    var = _all_reduce(centred.square().sum(axes)) / total
    out = centred * (var + norm.eps).rsqrt().reshape(shape)
    if norm.weight is not None:
        out = out * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    _update(norm, mean.detach(), var.detach(), total)
    return out.to(x.dtype)  # type: ignore[no-any-return]


def _update(norm: Any, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Torch's moving average, with the unbiased variance of the whole batch."""
    norm.num_batches_tracked.add_(1)
    share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    unbiased = var * (count / (count - 1).clamp(min=1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)


def _all_reduce(x: Tensor) -> Tensor:
    total: Tensor = _AllReduce.apply(x)  # type: ignore[no-untyped-call]
    return total


class _AllReduce(torch.autograd.Function):
    """A sum over the processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics of every BN, by their paths in the module."""
    return {f"{name}.{held}" if name else held: buffer.clone()
            for name, norm in batch_norms(module).items()
            for held, buffer in norm.named_buffers(recurse=False)}


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Put the running statistics back afterwards as they were."""
    held = [(b, b.clone()) for norm in batch_norms(module).values() for b in norm.buffers()]
    try:
        yield
    finally:
        for buffer, value in held:
            buffer.copy_(value)
