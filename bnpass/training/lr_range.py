"""The learning-rate range test: one short run while the rate grows (Smith 2017)."""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from bnpass.errors import InputError, UsageError
from bnpass.training.config import TrainConfig
from bnpass.training.devices import repeatable
from bnpass.training.feed import Samples
from bnpass.training.losses import Tally
from bnpass.training.setup import prepare
from bnpass.training.step import take_step

_SMOOTHING = 0.9
_BLOWN_UP = 4.0  # times the lowest smoothed loss: the test ends


@dataclass(frozen=True)
class LrRange:
    """What a range test saw.

    Attributes:
        lrs: the rates, rising by equal factors.
        losses: training loss of the step at each rate.
        smoothed: the same as a bias-corrected moving average.
        suggestion: a third of the rate at which the smoothed loss was lowest.
        steepest: the rate at which it fell fastest.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float
    steepest: float

    def to_dict(self) -> dict[str, Any]:
        """The test as plain JSON types."""
        return {
            "lrs": list(self.lrs), "losses": list(self.losses), "smoothed": list(self.smoothed),
            "suggestion": self.suggestion, "steepest": self.steepest,
        }


def lr_range_test(
    gm: nn.Module, data: Samples, config: TrainConfig, *, low: float = 1e-4, high: float = 10.0,
    steps: int = 100,
) -> LrRange:
    """Train a copy for some steps while the learning rate grows from ``low`` to ``high``.

    Args:
        gm: the network; it stays as it is.
        data: labelled samples.
        config: the settings of the run to come; its schedule is not used.
        low: first rate.
        high: last rate, unless the loss blows up before.
        steps: length of the test.

    Raises:
        InputError: the loss is no number from the start, or data and network do not fit.
        UsageError: an empty range.
    """
    if not (0 < low < high and steps >= 10):
        raise UsageError(f"range test from {low:g} to {high:g} in {steps} steps",
                         "give 0 < low < high and 10 steps or more")
    rates = np.geomspace(low, high, steps)
    losses: list[float] = []
    smoothed: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(repeatable(deterministic=config.deterministic))
        settings = replace(config, steps=steps, watch=(), compile=False)
        setup = prepare(copy.deepcopy(gm), data, None, settings, stack)
        average = 0.0
        for step, batches in setup.feed.steps(0, steps):
            tally = Tally()
            take_step(setup, step, float(rates[step]), batches, tally)
            loss, _ = tally.means()
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            corrected = average / (1 - _SMOOTHING ** (step + 1))
            if not math.isfinite(corrected) or corrected > _BLOWN_UP * min([*smoothed, corrected]):
                break
            losses.append(loss)
            smoothed.append(corrected)
    return _judged(rates[: len(losses)], losses, smoothed)


def _judged(rates: Any, losses: list[float], smoothed: list[float]) -> LrRange:
    if len(losses) < 5:
        raise InputError("the loss blows up at the lowest learning rates",
                         "check the data's scaling, or give a lower --lr by hand")
    lowest = int(np.argmin(smoothed))
    slope = np.gradient(smoothed, np.log(rates))
    steepest = float(rates[int(np.argmin(slope[: lowest + 1]))])
    return LrRange(tuple(rates.tolist()), tuple(losses), tuple(smoothed),
                   float(rates[lowest]) / 3, steepest)
