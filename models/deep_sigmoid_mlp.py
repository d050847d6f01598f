"""Ten hidden layers of 100 sigmoids: a network that plain gradient descent cannot train.

A sigmoid's slope is at most 1/4, so the gradient that reaches the first of ten layers is tiny
and the network stays at chance; with a BN before every sigmoid the same network learns. This is
the claim of the paper's section 3.3 and figure 1, on a deeper network than its own of three
layers. The start is the standard one for sigmoids (Glorot & Bengio 2010), so that the network
without BN has the best chance that a usual initialisation gives it; biases keep torch's default.
"""

from __future__ import annotations

import torch
from torch import nn

INPUT_SHAPE = (1, 28, 28)


def build(seed: int = 0, depth: int = 10, width: int = 100) -> nn.Module:
    """Return the network: images ``(N, 1, 28, 28)`` in [0, 1] to logits ``(N, 10)``."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for index in range(depth):
        layers += [nn.Linear(784 if index == 0 else width, width), nn.Sigmoid()]
    layers.append(nn.Linear(width, 10))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(*layers)
