"""GoogLeNet by hand (Szegedy et al. 2014, table 1), and images that live on the device.

As the BN paper took it up (arXiv:1502.03167, section 4.2.1): no local response normalisation, no
Dropout, and no auxiliary heads. It has 57 convolutions with ReLU and one linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Inputs; then channels of 1x1, 3x3 (reduced, full), 5x5 (reduced, full), behind the pool.
BLOCKS = (
    ((192, 64, 96, 128, 16, 32, 32), (256, 128, 128, 192, 32, 96, 64)),
    (
        (480, 192, 96, 208, 16, 48, 64),
        (512, 160, 112, 224, 24, 64, 64),
        (512, 128, 128, 256, 24, 64, 64),
        (512, 112, 144, 288, 32, 64, 64),
        (528, 256, 160, 320, 32, 128, 128),
    ),
    ((832, 256, 160, 320, 32, 128, 128), (832, 384, 192, 384, 48, 128, 128)),
)


def unit(inputs: int, outputs: int, kernel: int, *, stride: int = 1, bn: bool) -> nn.Sequential:
    """Return a convolution and its ReLU; with BN in between, the convolution has no bias."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not bn)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, *([nn.BatchNorm2d(outputs)] if bn else []), nn.ReLU())


class Block(nn.Module):
    """Four branches side by side: 1x1, 3x3, 5x5, and a pool with a 1x1 behind it."""

    def __init__(self, channels: tuple[int, ...], *, bn: bool) -> None:
        super().__init__()
        inputs, one, three_in, three, five_in, five, pool = channels
        self.one = unit(inputs, one, 1, bn=bn)
        self.three = nn.Sequential(
            unit(inputs, three_in, 1, bn=bn), unit(three_in, three, 3, bn=bn)
        )
        self.five = nn.Sequential(unit(inputs, five_in, 1, bn=bn), unit(five_in, five, 5, bn=bn))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(inputs, pool, 1, bn=bn))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, one + three + five + pool, H, W)``."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class GoogLeNet(nn.Module):
    """Images ``(N, 3, H, W)`` to logits ``(N, classes)``.

    Args:
        divisor: divides every number of channels (1: GoogLeNet's own size, 7.0 million weights).
        classes: outputs.
        bn: a BatchNorm in front of every ReLU, as one would write it by hand.
    """

    def __init__(self, divisor: int = 1, classes: int = 1000, *, bn: bool = False) -> None:
        super().__init__()
        first, wide = 64 // divisor, 192 // divisor
        groups = [
            nn.Sequential(*(Block(tuple(c // divisor for c in row), bn=bn) for row in rows))
            for rows in BLOCKS
        ]
        self.features = nn.Sequential(
            unit(3, first, 7, stride=2, bn=bn),
            nn.MaxPool2d(3, 2, 1),
            unit(first, first, 1, bn=bn),
            unit(first, wide, 3, bn=bn),
            nn.MaxPool2d(3, 2, 1),
            groups[0],
            nn.MaxPool2d(3, 2, 1),
            groups[1],
            nn.MaxPool2d(3, 2, 1),
            groups[2],
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(1024 // divisor, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        return self.classifier(torch.flatten(self.features(x), 1))


class Images:
    """Labelled images made on the device: a coarse pattern for each class, under noise.

    Args:
        size: height and width.
        classes: how many patterns.
        device: where they are made and stay.
        seed: of patterns and noise.
    """

    def __init__(self, size: int, classes: int, device: torch.device, seed: int = 0) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        coarse = torch.randn((classes, 3, 7, 7), generator=self.generator, device=device)
        self.patterns = nn.functional.interpolate(coarse, size=(size, size), mode="nearest")

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Return images ``(count, 3, size, size)`` and their classes ``(count,)``."""
        where = self.patterns.device
        y = torch.randint(len(self.patterns), (count,), generator=self.generator, device=where)
        noise = torch.randn(self.patterns[y].shape, generator=self.generator, device=where)
        return self.patterns[y] + noise, y

    def batches(self, count: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``number`` batches."""
        for _ in range(number):
            yield self.batch(count)
