"""Optimizers whose weight decay leaves gamma, beta and biases alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bnpass.training.config import TrainConfig
from bnpass.training.sgd import SGD


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that want a gradient, in two groups: decayed and not."""
    groups = parameter_groups(module, config)
    # One kernel for all parameters, where torch has it: a small net's step is half as long.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda")
                for group in groups for p in group["params"])
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=fused)
    return SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused,
                           nesterov=config.nesterov and config.momentum > 0)


def parameter_groups(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Weights (rank 2 and more) with the weight decay; gamma, beta and biases without.

    A per-channel vector is one whatever its layout: (1, c, 1, 1) is no weight.
    """
    wanted = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in wanted if config.decay_all or sum(size > 1 for size in p.shape) > 1]
    known = {id(p) for p in decayed}
    rest = [p for p in wanted if id(p) not in known]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
