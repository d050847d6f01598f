"""The paper's MNIST network (Ioffe & Szegedy 2015, section 4.1), without normalisation.

Three fully connected hidden layers of 100 sigmoids each, and ten outputs. As in the paper, the
weights start as small random Gaussian values; their size, which the paper does not give, is
Glorot's: variance 2 / (inputs + outputs). Biases keep torch's default (uniform).
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

INPUT_SHAPE = (1, 28, 28)


def build(seed: int = 0) -> nn.Module:
    """Return the network: images ``(N, 1, 28, 28)`` in [0, 1] to logits ``(N, 10)``."""
    torch.manual_seed(seed)
    sizes = [784, 100, 100, 100]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Sigmoid()]
    layers.append(nn.Linear(sizes[-1], 10))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
    return nn.Sequential(*layers)
