"""Learning rates as pure functions of the step: a resumed run needs no stored schedule."""

from __future__ import annotations

import math

from bnpass.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The rate of one step.

    Args:
        config: the schedule and its highest rate.
        step: ``0 .. total - 1``.
        total: steps of the run.
    """
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.lr * rise * _SHAPES[config.schedule](config, step, total)


def _constant(_config: TrainConfig, _step: int, _total: int) -> float:
    return 1.0


def _step(config: TrainConfig, step: int, total: int) -> float:
    every = config.decay_every or max(1, math.ceil(total / config.decays))
    return float(config.decay_factor ** (step // every))


def _cosine(config: TrainConfig, step: int, total: int) -> float:
    # From 1 behind the warm-up to just above 0 at the last step.
    start = min(config.warmup, total - 1)
    done = max(0, step - start) / max(1, total - start)
    return 0.5 * (1 + math.cos(math.pi * done))


def _onecycle(_config: TrainConfig, step: int, total: int) -> float:
    # Smith & Topin 2019: up from 1/25 over 30% of the run, down to 1/10,000 of that; where torch's
    # OneCycleLR has its peak.
    peak = max(1.0, 0.3 * total - 1)
    low, final = 1 / 25, 1 / 25e4
    if step <= peak:
        return _anneal(low, 1.0, step / peak)
    return _anneal(1.0, final, (step - peak) / max(1.0, total - 1 - peak))


def _anneal(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


_SHAPES = {"constant": _constant, "step": _step, "cosine": _cosine, "onecycle": _onecycle}
