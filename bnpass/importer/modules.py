"""The two kinds of layer that behave differently in training: they have to be modules."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNorm(_BatchNorm):
    """Batch normalisation over axis 1 of an input of any rank >= 2 (ONNX BatchNormalization).

    Source: Ioffe & Szegedy 2015, Algorithm 1 and 2. ``momentum`` has torch's meaning: ONNX 0.9 is
    0.1 here.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of rank 2 or more, got {input.dim()}")
