"""Loss and metrics on a data set, in eval mode, shared among the processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from bnpass.nn import distributed
from bnpass.nn.calls import device_of
from bnpass.training.devices import autocast, pick_device
from bnpass.training.feed import Reader, Samples, run, samples_of
from bnpass.training.losses import Objective, objective
from bnpass.training.metrics import merit
from bnpass.training.sets import as_samples, labels_of


@dataclass(frozen=True)
class Score:
    """How good a network is on some data.

    Attributes:
        loss: mean over the samples.
        metrics: by name, the one that counts first; empty where the loss knows none.
        samples: number of samples.
    """

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, or ``None`` where that is not what counts."""
        return self.metrics.get("accuracy")

    @property
    def merit(self) -> float:
        """The metric that counts, or minus the loss without one: higher is better."""
        return merit(self.metrics, self.loss)


def evaluate(
    gm: nn.Module, data: object, *, loss: str = "auto", metric: str = "auto",
    device: str = "auto", batch_size: int = 1000, ignore_index: int = -100,
) -> Score:
    """Loss and metrics of a network on labelled data, in eval mode.

    Args:
        gm: the network.
        data: as for :func:`bnpass.training.train`.
        loss, metric, ignore_index: see :func:`bnpass.training.losses.objective`.
        device: where to compute.
        batch_size: samples in a call.

    Raises:
        InputError: the labels do not fit the outputs.
    """
    samples = as_samples(data)
    place, home = pick_device(device), device_of(gm)
    gm.to(place)
    try:
        reader = Reader(samples, place, gm)
        goal = objective(gm, labels_of(samples, reader), reader.example()[0], loss=loss,
                         metric=metric, ignore_index=ignore_index)
        return score(goal, samples, place, batch_size=batch_size, gm=gm)
    finally:
        gm.to(home)


def score(
    goal: Objective, data: Samples, device: torch.device, *, batch_size: int = 1000,
    precision: str = "fp32", channels_last: bool = False, gm: nn.Module | None = None,
) -> Score:
    """:func:`evaluate` for a prepared objective; each process takes every so many-th batch."""
    loss_sum, seen, metric = 0.0, 0, goal.metric(True)
    reader = Reader(data, device, gm if gm is not None else goal.module,
                    channels_last=channels_last)
    with in_eval_mode(goal.module), torch.no_grad(), autocast(device, precision):
        for inputs, targets in reader.batches(batch_size):
            outputs = run(goal.module, inputs)
            samples = samples_of((inputs, targets))
            loss_sum += float(goal.loss(outputs, targets)) * samples
            metric.add(outputs, targets)
            seen += samples
    loss_sum, all_seen = distributed.total(loss_sum, seen)
    return Score(loss_sum / max(1.0, all_seen), metric.values(), int(all_seen))


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards each part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
