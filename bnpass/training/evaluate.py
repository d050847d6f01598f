"""Loss and accuracy on a data set, in eval mode, shared among the processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from bnpass.data.dataset import Data
from bnpass.nn import distributed
from bnpass.training.devices import autocast, pick_device
from bnpass.training.feed import to_tensors
from bnpass.training.losses import Objective, objective


@dataclass(frozen=True)
class Score:
    """How good a network is on some data.

    Attributes:
        loss: mean over the samples.
        accuracy: share of right answers, or ``None`` where the loss knows none.
        samples: number of samples.
    """

    loss: float
    accuracy: float | None
    samples: int

    @property
    def merit(self) -> float:
        """The accuracy, or minus the loss without one: higher is better."""
        return -self.loss if self.accuracy is None else self.accuracy


def evaluate(
    gm: fx.GraphModule, data: Data, *, loss: str = "auto", device: str = "auto",
    batch_size: int = 1000,
) -> Score:
    """Loss and accuracy of a network on labelled data, in eval mode.

    Raises:
        InputError: the labels do not fit the outputs.
    """
    place = pick_device(device)
    home = next((p.device for p in gm.parameters()), torch.device("cpu"))
    gm.to(place)
    try:
        sample, _ = to_tensors(data, np.arange(min(2, len(data))), place)
        goal = objective(gm, data.labels, sample, loss=loss)
        return score(goal, data, place, batch_size=batch_size)
    finally:
        gm.to(home)


def score(
    goal: Objective, data: Data, device: torch.device, *, batch_size: int = 1000,
    precision: str = "fp32", channels_last: bool = False,
) -> Score:
    """:func:`evaluate` for a prepared objective; each process takes every so many-th batch."""
    loss_sum = right = seen = 0.0
    starts = range(0, len(data), batch_size)[distributed.rank() :: distributed.world()]
    with in_eval_mode(goal.module), torch.no_grad(), autocast(device, precision):
        for start in starts:
            index = np.arange(start, min(start + batch_size, len(data)))
            x, y = to_tensors(data, index, device, channels_last=channels_last)
            outputs = goal.module(x)
            loss_sum += float(goal.loss(outputs, y)) * len(index)
            right += float(goal.correct(outputs, y).sum()) if goal.correct else 0.0
            seen += len(index)
    loss_sum, right, seen = distributed.total(loss_sum, right, seen)
    return Score(loss_sum / seen, right / seen if goal.correct else None, int(seen))


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
