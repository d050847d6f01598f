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

from bnpass.nn.masks import counted

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
    chosen = counted(x)
    if chosen is not None:
        return _by_moments(norm, x, *_moments(chosen))
    return F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


def by_what_counts(norm: Any, x: Tensor) -> Tensor:
    """Normalise by the positions of the batch that count, see :mod:`bnpass.nn.masks`."""
    chosen = counted(x) if norm.training else None
    if chosen is None:
        return _own(norm, x)
    var, mean = _moments(chosen)
    with torch.no_grad():
        _update(norm, mean, var, mean.new_tensor(len(chosen)))
    return _by_moments(norm, x, var, mean)


def _moments(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Biased variance and mean ``(c,)`` of elements ``(m, c)``, in float32 or better."""
    wide = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    return torch.var_mean(wide, 0, correction=0)


def _by_moments(norm: Any, x: Tensor, var: Tensor, mean: Tensor) -> Tensor:
    shape = [1, -1] + [1] * (x.ndim - 2)
    normal = (x.to(var.dtype) - mean.reshape(shape)) * (var + norm.eps).rsqrt().reshape(shape)
    if norm.weight is not None:
        normal = normal * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    out: Tensor = normal.to(x.dtype)
    return out


def by_ghost_batches(size: int) -> Normalise:
    """Normalise parts of about ``size`` samples each by itself (Hoffer 2017, ghost batches)."""

    def normalise(norm: Any, x: Tensor) -> Tensor:
        if not norm.training:
            return _own(norm, x)
        parts = max(1, min(round(len(x) / size), len(x) // 2))  # one sample alone has no variance
        return torch.cat([_own(norm, part) for part in x.tensor_split(parts)])

    return normalise


class Renormalise:
    """Batch renormalisation (Ioffe 2017, arXiv:1702.03275): what inference does, in training, too.

    A batch is normalised as by BN and then corrected, by constants as far as the gradient goes,
    to what the running statistics would have made of it: gamma * r and beta + gamma * d with
    r = sigma_B / sigma and d = (mu_B - mu) / sigma, within limits that widen over the run (r from
    1 to 3, d from 0 to 5; plain BN for the first twentieth). The eval mode is that of BN.

    Args:
        total: steps of the run.
    """

    def __init__(self, total: int) -> None:
        self.total, self.step = total, 0

    @property
    def limits(self) -> tuple[float, float]:
        """The largest r (its reciprocal is the smallest) and the largest size of d, now."""
        done = self.step / max(1, self.total)
        return 1 + 2 * _ramp(done, 0.05, 0.4), 5 * _ramp(done, 0.05, 0.25)

    def __call__(self, norm: Any, x: Tensor) -> Tensor:
        """Normalise a batch ``(n, c, ...)``."""
        if not norm.training or norm.weight is None:
            return _own(norm, x)
        largest, farthest = self.limits
        with torch.no_grad():
            wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
            axes = [d for d in range(x.ndim) if d != 1]
            var, mean = torch.var_mean(wide, axes, correction=0)
            sigma = (norm.running_var.to(wide.dtype) + norm.eps).sqrt()
            r = ((var + norm.eps).sqrt() / sigma).clamp(1 / largest, largest)
            d = ((mean - norm.running_mean.to(wide.dtype)) / sigma).clamp(-farthest, farthest)
        norm.num_batches_tracked.add_(1)
        share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
        weight, bias = norm.weight * r, norm.bias + norm.weight * d
        return F.batch_norm(x, norm.running_mean, norm.running_var, weight.to(norm.weight.dtype),
                            bias.to(norm.bias.dtype), True, share, norm.eps)


def _ramp(done: float, start: float, end: float) -> float:
    return min(1.0, max(0.0, (done - start) / (end - start)))


def _own(norm: Any, x: Tensor) -> Tensor:
    out: Tensor = type(norm).forward(norm, x)
    return out


def across_processes(norm: Any, x: Tensor) -> Tensor:
    """Normalise by the batch of all processes together; what SyncBatchNorm does on a GPU only.

    The ranks' parts may differ in size. One collective forward (count, mean and sum of squares of
    each part, merged as Chan et al. do) and one backward, as in torch's SyncBatchNorm.
    """
    if not norm.training:
        return _own(norm, x)
    out, mean, var, total = _Synchronised.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    _update(norm, mean, var, total)
    return out  # type: ignore[no-any-return]


def _update(norm: Any, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Torch's moving average, with the unbiased variance of the whole batch."""
    norm.num_batches_tracked.add_(1)
    share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    unbiased = var * (count / (count - 1).clamp(min=1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)


class _Synchronised(torch.autograd.Function):
    """Batch normalisation over the parts of all processes (arXiv:1502.03167, Algorithm 1)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, weight, bias, eps = args
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean, var, total = _merged_moments(values)
        scale = (var + eps).rsqrt()
        normal = (values - mean.reshape(shape)) * scale.reshape(shape)
        ctx.save_for_backward(normal, weight, scale, total)
        ctx.mark_non_differentiable(mean, var, total)
        out = normal if weight is None else normal * weight.reshape(shape) + bias.reshape(shape)
        return out.to(x.dtype), mean, var, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        normal, weight, scale, total = ctx.saved_tensors
        given = gradients[0]
        wide = given.to(normal.dtype)
        axes = [d for d in range(wide.ndim) if d != 1]
        shape = [1, -1] + [1] * (wide.ndim - 2)
        sums = torch.stack([wide.sum(axes), (wide * normal).sum(axes)])
        own = sums.clone()  # DDP adds the processes' gradients of gamma and beta up itself
        dist.all_reduce(sums)
        factor = scale if weight is None else scale * weight
        means = (sums / total).reshape(2, *shape)
        inputs = (wide - means[0] - normal * means[1]) * factor.reshape(shape)
        if weight is None:
            return inputs.to(given.dtype), None, None, None
        return inputs.to(given.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _merged_moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance ``(c,)`` over all processes, and elements a channel ``(1,)``."""
    axes = [d for d in range(values.ndim) if d != 1]
    var, mean = torch.var_mean(values, axes, correction=0)
    count = values.new_full((1,), values.numel() / values.shape[1])
    mine = torch.cat([count, mean, var * count])
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    parts = torch.stack(found)
    counts, means, squares = parts[:, :1], *parts[:, 1:].chunk(2, 1)
    total = counts.sum(0)
    mean = (means * counts).sum(0) / total
    # Each part's distance from the common mean, so that a large mean costs no precision.
    var = (squares + counts * (means - mean).square()).sum(0) / total
    return mean, var, total


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
