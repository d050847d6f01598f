"""Optimizers whose weight decay leaves gamma, beta and biases alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bnpass.training.config import TrainConfig
from bnpass.training.weights import weights_of


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that want a gradient, in two groups: decayed and not."""
    groups = parameter_groups(module, config)
    # One kernel for all parameters, where torch has it: a small net's step is half as long.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda")
                for group in groups for p in group["params"])
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused,
                           nesterov=config.nesterov and config.momentum > 0)


def parameter_groups(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Weights with the weight decay; gamma, beta and biases without (see :func:`weights_of`)."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    weights = weights_of(module)
    decayed = [p for p in wanted if config.decay_all or id(p) in weights]
    known = {id(p) for p in decayed}
    rest = [p for p in wanted if id(p) not in known]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
