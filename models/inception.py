"""A small Inception for 28x28 images: the kind of network that BN was first put into.

It has what GoogLeNet had before BN and what the paper then took out (section 4.2.1): local
response normalisation behind the stem, and Dropout in front of the classifier. The blocks are the
paper's variant of Inception: the 5x5 convolution is two 3x3 in a row, and one branch pools.
Weights start as in GoogLeNet's time (He et al. 2015, for ReLU), biases at torch's default.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUT_SHAPE = (1, 28, 28)


class ConvReLU(nn.Module):
    """A convolution that keeps the size, with bias, and its ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H, W)``."""
        return self.relu(self.conv(x))


class Block(nn.Module):
    """Four branches side by side: 1x1, 3x3, two 3x3 in a row, and a pool with a 1x1 behind it."""

    def __init__(self, inputs: int, one: int, three: int, two: int, pool: int) -> None:
        super().__init__()
        self.one = ConvReLU(inputs, one, 1)
        self.three = nn.Sequential(ConvReLU(inputs, three // 2, 1), ConvReLU(three // 2, three, 3))
        self.two = nn.Sequential(
            ConvReLU(inputs, two // 2, 1),
            ConvReLU(two // 2, two, 3),
            ConvReLU(two, two, 3),
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvReLU(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, one + three + two + pool, H, W)``."""
        return torch.cat([self.one(x), self.three(x), self.two(x), self.pool(x)], dim=1)


class Inception(nn.Module):
    """Images ``(N, 1, 28, 28)`` in [0, 1] to logits ``(N, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvReLU(1, 16, 3),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
            ConvReLU(16, 16, 1),
            ConvReLU(16, 32, 3),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
        )
        self.block1 = Block(32, one=16, three=24, two=16, pool=8)
        self.reduce = nn.MaxPool2d(3, stride=2, padding=1)
        self.block2 = Block(64, one=24, three=48, two=24, pool=16)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.4)
        self.classifier = nn.Linear(112, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = self.reduce(self.block1(self.stem(x)))  # (N, 64, 7, 7)
        x = torch.flatten(self.gap(self.block2(x)), 1)  # (N, 112)
        return self.classifier(self.dropout(x))


def build(seed: int = 0) -> nn.Module:
    """Return an Inception with seeded weights."""
    torch.manual_seed(seed)
    model = Inception()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return model
