"""One training run, and what is measured of it: a process of its own for each core."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import bnpass
from benchmarks.paper.context import SAMPLE
from benchmarks.placement.nets import NETS, nothing, published

ARMS = ("plain", "published", "ours")
BATCH = 32


@dataclass(frozen=True)
class Trial:
    """What is trained: a network, an arm, an optimiser, its rate, a seed, how long, on what."""

    net: str
    arm: str
    optimizer: str
    lr: float
    seed: int
    steps: int
    data: str | None


@dataclass(frozen=True)
class Outcome:
    """What came out: test accuracy, BN before and after the fold, its error, ms a step."""

    trial: Trial
    accuracy: float
    norms: int
    left: int
    error: float
    ms: float


@cache
def images(data: str | None) -> tuple[torch.Tensor, ...]:
    """Training and test images (N, 1, 14, 14), standardised, and labels."""
    folder = Path(data) / "fashion-mnist" if data else SAMPLE
    found = []
    for part in ("train", "test"):
        x, y = _arrays(folder, part)
        x = F.avg_pool2d(x.float().reshape(-1, 1, 28, 28) / 255, 2)
        found += [x, y.long()]
    mean, std = found[0].mean(), found[0].std()
    return (found[0] - mean) / std, found[1], (found[2] - mean) / std, found[3]


def _arrays(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    import gzip

    import numpy as np

    stem = {"train": "train", "test": "t10k"}[part]
    with gzip.open(folder / f"{stem}-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784).copy()
    with gzip.open(folder / f"{stem}-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8).copy()
    return torch.from_numpy(x), torch.from_numpy(y)


def build(trial: Trial) -> nn.Module:
    """The network of a trial: the same weights in every arm."""
    torch.manual_seed(trial.seed)
    net = NETS[trial.net](published if trial.arm == "published" else nothing)
    if trial.arm != "ours":
        return net
    return bnpass.insert(net, (torch.zeros(2, 1, 14, 14),))  # type: ignore[no-any-return]


def run(trial: Trial) -> Outcome:
    """Train, measure population statistics, fold, test."""
    x, _, test_x, test_y = images(trial.data)
    net = build(trial)
    ms = train(net, trial)
    return Outcome(trial, *_deployed(net, x, test_x, test_y), ms)


def train(net: nn.Module, trial: Trial) -> float:
    """Train as a trial says; ms a step."""
    torch.set_num_threads(1)
    x, y, _, _ = images(trial.data)
    net.train()
    order = torch.Generator().manual_seed(1000 + trial.seed)
    optimizer = _optimizer(net, trial)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.steps)
    start = time.perf_counter()
    for _ in range(trial.steps):
        chosen = torch.randint(len(x), (BATCH,), generator=order)
        loss = F.cross_entropy(net(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return 1000 * (time.perf_counter() - start) / trial.steps


def cost(net: str, rounds: int, data: str | None) -> dict[str, float]:
    """The ms of a training step of each arm, see :func:`by_turns`."""
    trials = {arm: Trial(net, arm, "SGD", 0.01, 1, 1, data) for arm in ARMS}
    return by_turns({arm: build(trial) for arm, trial in trials.items()}, rounds, data)


def by_turns(nets: dict[str, nn.Module], rounds: int, data: str | None) -> dict[str, float]:
    """The median ms of a training step of each network, taken by turns: load hits all alike."""
    torch.set_num_threads(1)
    x, y, _, _ = images(data)
    optimizers = {name: torch.optim.SGD(net.train().parameters(), 0.01, momentum=0.9)
                  for name, net in nets.items()}
    taken: dict[str, list[float]] = {name: [] for name in nets}
    for number in range(rounds + 2):
        for name, net in nets.items():
            start = time.perf_counter()
            optimizers[name].zero_grad()
            F.cross_entropy(net(x[:BATCH]), y[:BATCH]).backward()
            optimizers[name].step()
            if number >= 2:  # the first ones warm up
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def _optimizer(net: nn.Module, trial: Trial) -> torch.optim.Optimizer:
    if trial.optimizer == "SGD":
        return torch.optim.SGD(net.parameters(), trial.lr, momentum=0.9)
    return torch.optim.AdamW(net.parameters(), trial.lr)


def _deployed(
    net: nn.Module, x: torch.Tensor, test_x: torch.Tensor, test_y: torch.Tensor
) -> tuple[float, int, int, float]:
    """Accuracy with population statistics, BN now and behind the fold, and the fold's error."""
    count = _norms(net)
    if count:
        bnpass.calibrate(net, x[:2000].split(500))
    outputs = logits(net, test_x)
    accuracy = float((outputs.argmax(1) == test_y).float().mean())
    left, error = 0, 0.0
    if count:
        folded = bnpass.fold(copy.deepcopy(net), (test_x[:8],))
        with torch.no_grad():
            wrong = (folded(test_x[:64]) - outputs[:64]).abs().max()
        error = float(wrong / outputs[:64].abs().max())
        left = _norms(folded)
    return accuracy, count, left, error


def logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a network makes of images, in eval mode."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(2000)])


def _norms(net: Any) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
