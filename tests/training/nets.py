from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

from bnpass.data import Data, from_arrays


def blobs(count: int = 400, classes: int = 4, width: int = 12, seed: int = 0) -> Data:
    """Classes around random centres, close enough that a net has to learn."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width)) * 1.5
    y = rng.integers(0, classes, count)
    x = centres[y] + rng.normal(size=(count, width))
    return from_arrays(x.astype(np.float32), y)


def images(count: int = 120, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = rng.normal(size=(count, 2, 6, 6)) + y[:, None, None, None] * 0.7
    return from_arrays(x.astype(np.float32), y)


def mlp(ending: nn.Module | None = None, *, dropout: float = 0.0, norm: bool = True,
        width: int = 12, classes: int = 4) -> fx.GraphModule:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (width, 16):
        layers.append(nn.Linear(inputs, 16, bias=not norm))
        layers += [nn.BatchNorm1d(16)] if norm else []
        layers += [nn.Sigmoid(), nn.Dropout(dropout)]
    layers.append(nn.Linear(16, classes))
    layers += [ending] if ending is not None else []
    return fx.symbolic_trace(nn.Sequential(*layers))


def convnet() -> fx.GraphModule:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Tanh(),
        nn.Flatten(), nn.Linear(20, 3),
    )
    return fx.symbolic_trace(net)
