"""Eight convolutions with sigmoids: the convolutional sister of ``deep_sigmoid_mlp``.

3x3 convolutions with padding 1, three of them with stride 2 (28 -> 14 -> 7 -> 4), then the mean
over the remaining positions. Glorot's initialisation, torch's default biases.
"""

from __future__ import annotations

import torch
from torch import nn

INPUT_SHAPE = (1, 28, 28)
STAGES = ((8, 2), (8, 1), (12, 1), (16, 2), (16, 1), (24, 2), (24, 1), (24, 1))  # channels, stride


def build(seed: int = 0) -> nn.Module:
    """Return the network: images ``(N, 1, 28, 28)`` in [0, 1] to logits ``(N, 10)``."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 1
    for outputs, stride in STAGES:
        layers += [nn.Conv2d(channels, outputs, 3, stride, padding=1), nn.Sigmoid()]
        channels = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(*layers)
