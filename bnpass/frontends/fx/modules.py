"""Modules that bnpass puts into a torch.fx graph."""

from __future__ import annotations

from torch import nn


class TrainingFlag(nn.Module):
    """Whether the network is in training mode, as a value of its graph.

    Tracing writes ``F.dropout(x, training=self.training)`` down with the flag of that moment; with
    this in its place the graph follows ``train()`` and ``eval()`` like the module it came from.
    """

    def forward(self) -> bool:
        """True in training mode."""
        return self.training
