"""An exponential moving average of the weights, beside the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """The average after t steps: old * d + new * (1 - d), d = min(decay, (1 + t) / (10 + t)).

    The rise of d (as in TensorFlow's ExponentialMovingAverage) lets the start be forgotten.

    Args:
        module: whose floating parameters are averaged.
        decay: of the average.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.live = {name: p for name, p in module.named_parameters() if p.is_floating_point()}
        self.held = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.held.values()), list(self.live.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average as the network's weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.live.items():
            now = parameter.detach().clone()
            parameter.copy_(self.held[name])
            self.held[name].copy_(now)

    def leave(self) -> None:
        """Leave the network with the average for good."""
        self._swap()

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint: the averages by name, and how many steps they hold."""
        return {**self.held, "": torch.tensor(self.steps)}

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.steps = int(state[""])
        for name, value in self.held.items():
            value.copy_(state[name])
