"""The two kinds of layer that behave differently in training: they have to be modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class BatchNorm(_BatchNorm):
    """ONNX BatchNormalization over axis 1; a vector is N samples of one channel.

    Source: Ioffe & Szegedy 2015, Algorithm 1 and 2. ``momentum`` has torch's meaning: ONNX 0.9 is
    0.1 here.
    """

    @classmethod
    def empty(cls, channels: int, eps: float, momentum: float) -> BatchNorm:
        """A layer whose weight, bias and statistics are still to be set."""
        layer = cls(channels, eps, momentum, affine=False, track_running_stats=False)
        layer.affine = layer.track_running_stats = True
        layer.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        return layer

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch calls it so
        """What torch's own layer computes, in fewer steps where it is called in training."""
        if input.dim() == self.num_features == 1:  # by ONNX a vector of N samples of one channel
            return self.forward(input.unsqueeze(1)).squeeze(1)
        weight, bias = self._affine("weight"), self._affine("bias")
        mean, var, count = map(self._buffers.get, _STATISTICS)
        if weight is None or bias is None or mean is None or var is None or count is None:
            return super().forward(input)
        if weight.dtype != mean.dtype or weight.dtype not in (input.dtype, torch.float32):
            return self._widened(input, weight, bias, mean, var)
        if not self.training or torch.compiler.is_compiling() or self.momentum is None:
            return super().forward(input)
        self._check_input_dim(input)
        count.add_(1)
        return torch.batch_norm(
            input, weight, bias, mean, var, True, self.momentum, self.eps, True
        )

    def _affine(self, name: str) -> Tensor | None:
        """Scale or shift: a parameter, or a buffer where the model computes it."""
        return self._parameters.get(name, self._buffers.get(name))

    def _widened(
        self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> Tensor:
        """ONNX allows three element types (data; scale and bias; statistics): in the widest."""
        kind = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), mean.dtype)
        m, v, w, b = (t.to(kind) for t in (mean, var, weight, bias))
        momentum = self._count() if self.training else 0.0
        y = nn.functional.batch_norm(x.to(kind), m, v, w, b, self.training, momentum, self.eps)
        if self.training and kind != mean.dtype:
            mean.copy_(m)
            var.copy_(v)
        return y.to(x.dtype)

    def _count(self) -> float:
        """Note one more batch; what part of the running statistics it replaces."""
        count = self._buffers["num_batches_tracked"]
        assert count is not None
        count.add_(1)
        return 1.0 / float(count) if self.momentum is None else self.momentum

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch calls it so
        if input.dim() < 2:
            raise ValueError(f"expected an input of rank 2 or more, got {input.dim()}")


class Dropout(nn.Module):
    """ONNX Dropout (22) with a computed ratio or with its mask as second result.

    It drops in train mode, and in every mode where the model's training_mode says so.
    """

    def forward(
        self, x: Tensor, ratio: float | Tensor, always: bool | Tensor
    ) -> tuple[Tensor, Tensor]:
        """The result and the mask of what was kept."""
        rate = float(ratio)
        if rate == 0.0 or not (self.training or bool(always)):
            return x, torch.ones_like(x, dtype=torch.bool)
        mask = torch.rand_like(x, dtype=torch.float32) >= rate
        return x * mask / (1.0 - rate), mask
