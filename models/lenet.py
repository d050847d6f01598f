"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998): convolutions, tanh, average pooling.

As in the paper but for three usual simplifications: plain average pools instead of pools with a
trainable scale, every map of the third layer reads every map of the second, and ten logits
instead of radial basis functions. Glorot's initialisation, torch's default biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUT_SHAPE = (1, 28, 28)


class LeNet(nn.Module):
    """Images ``(N, 1, 28, 28)`` in [0, 1] to logits ``(N, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5, padding=2)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.out = nn.Linear(84, 10)
        self.act = nn.Tanh()
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = self.pool(self.act(self.c1(x)))  # (N, 6, 14, 14)
        x = self.pool(self.act(self.c3(x)))  # (N, 16, 5, 5)
        x = torch.flatten(self.act(self.c5(x)), 1)  # (N, 120)
        return self.out(self.act(self.f6(x)))


def build(seed: int = 0) -> nn.Module:
    """Return a LeNet with seeded weights."""
    torch.manual_seed(seed)
    model = LeNet()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return model
