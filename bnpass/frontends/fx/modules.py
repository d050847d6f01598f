"""Modules that bnpass puts into a torch.fx graph."""

from __future__ import annotations

from typing import Any

from torch import nn


class TrainingFlag(nn.Module):
    """Whether the network is in training mode, as a value of its graph.

    Tracing writes ``F.dropout(x, training=self.training)`` down with the flag of that moment; with
    this in its place the graph follows ``train()`` and ``eval()`` like the module it came from.
    """

    def forward(self) -> bool:
        """True in training mode."""
        return self.training


class ByMode(nn.Module):
    """A number that is another one in training mode, as a value of a graph."""

    def __init__(self, live: Any, still: Any) -> None:
        super().__init__()
        self.live, self.still = live, still

    def forward(self) -> Any:
        """The number of the present mode."""
        return self.live if self.training else self.still
