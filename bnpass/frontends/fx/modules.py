"""Modules that bnpass puts into a torch.fx graph."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class ChannelsLastBatchNorm(_BatchNorm):
    """Batch normalisation over the last axis: (..., C), the others are the batch.

    torch's own modules take the channels from axis 1. This one is for what ``nn.Linear`` makes of
    (N, T, F); its parameters and buffers are called as in :class:`torch.nn.BatchNorm1d`.
    Source: Ioffe & Szegedy 2015, section 3.1.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002 - torch's name
        if input.dim() < 2:
            raise ValueError(f"expected an input of rank 2 or more, got {input.dim()}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Normalise ``input`` of shape (..., C)."""
        flat = super().forward(input.reshape(-1, input.shape[-1]))
        return flat.reshape(input.shape)


class TrainingFlag(nn.Module):
    """Whether the network is in training mode, as a value of its graph.

    Tracing writes ``F.dropout(x, training=self.training)`` down with the flag of that moment; with
    this in its place the graph follows ``train()`` and ``eval()`` like the module it came from.
    """

    def forward(self) -> bool:
        """True in training mode."""
        return self.training
