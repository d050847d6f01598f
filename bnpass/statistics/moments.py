"""Moments of what a BN sees, batch by batch, and what each method makes of them; in float64.

Four methods, with the same meaning wherever the batches are computed:

- ``pooled``: over every element that the BN saw: the mean of all, and by the law of total variance
  the biased batch variances averaged by their counts plus the variance of the batch means.
- ``paper``: Algorithm 2 literally: E[mean_B] and m / (m - 1) * E[var_B], averaged by the batches'
  counts. Meant for batches of the training's size; behind another BN it over-corrects.
- ``ema``: what the BN's own moving average becomes in training mode: from the stored statistics
  on, with the BN's momentum and the unbiased variance, batch after batch in their order.
- ``exact``: layer by layer: what each BN sees once those in front of it have their population
  statistics, pooled. It does not depend on the batches and takes a pass for each BN: the reference
  for all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnpass.errors import InputError, UsageError, close_matches

Array = np.ndarray[Any, Any]
METHODS = ("pooled", "paper", "ema", "exact")


def check_method(method: str) -> None:
    """Refuse an unknown method.

    Raises:
        UsageError: with close matches as the hint.
    """
    if method not in METHODS:
        hint = close_matches(method, METHODS) or f"choose {', '.join(METHODS)}"
        raise UsageError(f"unknown method {method!r}", hint)


@dataclass(frozen=True)
class BatchMoments:
    """What one BN saw in one batch.

    Attributes:
        mean: ``(c,)`` float64.
        var: biased, ``(c,)`` float64.
        count: elements a channel.
        number: of the batch, from 0 on.
        samples: in the batch; 0 where unknown.
    """

    mean: Array
    var: Array
    count: int
    number: int = 0
    samples: int = 0

    @property
    def unbiased(self) -> Array:
        """The unbiased variance ``(c,)``."""
        scaled: Array = self.var * (self.count / (self.count - 1))
        return scaled


@dataclass
class Moments:
    """Moments of one BN over batches; those of several processes can be merged.

    Attributes:
        count: elements a channel, over all batches.
        mean: of all elements ``(c,)``.
        squares: sum of squared distances from :attr:`mean` ``(c,)``.
        between: the part of it that lies between the batches ``(c,)``.
        samples: over all batches.
        smallest: the fewest elements a channel that a batch had.
        batches: each batch's own moments, where ``keep`` asks for them (``paper`` and ``ema``).
        seen: number of batches.
    """

    keep: bool = False
    count: int = 0
    mean: Any = 0.0
    squares: Any = 0.0
    between: Any = 0.0
    samples: int = 0
    smallest: float = math.inf
    seen: int = 0
    batches: list[BatchMoments] = field(default_factory=list)

    def add(self, batch: BatchMoments) -> None:
        """Take in a batch."""
        alone = Moments(self.keep, batch.count, batch.mean, batch.var * batch.count, 0.0,
                        batch.samples, batch.count, 1, [batch] if self.keep else [])
        self.merge(alone)

    def merge(self, other: Moments) -> None:
        """Take in other moments (Chan, Golub and LeVeque 1983: nothing cancels)."""
        if not other.count:
            return
        total = self.count + other.count
        gap = other.mean - self.mean
        between = gap**2 * (self.count * other.count / total)
        self.between = self.between + other.between + between
        self.squares = self.squares + other.squares + between
        self.mean = self.mean + gap * (other.count / total)
        self.count = total
        self.samples += other.samples
        self.smallest = min(self.smallest, other.smallest)
        self.seen += other.seen
        self.batches = [*self.batches, *other.batches]

    @property
    def pooled(self) -> tuple[Array, Array]:
        """Mean and biased variance of all elements, ``(c,)`` float64 each.

        Raises:
            InputError: there was no data.
        """
        if not self.count:
            raise InputError("the data holds no batch", "give at least one")
        return np.asarray(self.mean), np.asarray(self.squares / self.count)

    def result(
        self, method: str, name: str, *, momentum: float | None = 0.1,
        start: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Array]:
        """Mean and variance ``(c,)`` float64 by a method.

        Args:
            method: one of :data:`METHODS`.
            name: the BN's, for messages.
            momentum: ``ema``: the share of a new batch; None averages all batches alike.
            start: ``ema``: the stored mean and variance that it begins with.

        Raises:
            InputError: no data, or a batch with one element a channel, which has no variance.
        """
        if self.seen and self.smallest < 2:
            raise InputError(f"a batch gives {name!r} one element a channel: a single value per "
                             "channel has no variance", "use batches of 2 samples or more")
        if method in ("pooled", "exact") or not self.seen:
            return self.pooled
        ordered = sorted(self.batches, key=lambda batch: batch.number)
        if method == "paper":
            return _paper(ordered)
        return _moving_average(ordered, momentum, start)

    @property
    def disorder(self) -> float:
        """Variance of the batch means over what mixed samples would give: 1 or less, if mixed.

        Mixed samples, however alike the positions inside of one are, give batch means of a
        variance of at most var / n for n samples in a batch. NaN where it cannot be told.
        """
        if self.seen < 2 or not self.samples:
            return math.nan
        positions = self.count / self.samples
        expected = (self.squares - self.between) / self.count * positions * (self.seen - 1)
        usable = np.asarray(expected > 0)
        if not usable.any():
            return math.nan
        return float(np.mean(np.asarray(self.between)[usable] / np.asarray(expected)[usable]))


def _paper(batches: list[BatchMoments]) -> tuple[Array, Array]:
    weights = np.array([batch.count for batch in batches], np.float64)
    mean = np.average([batch.mean for batch in batches], axis=0, weights=weights)
    return mean, np.average([batch.unbiased for batch in batches], axis=0, weights=weights)


def _moving_average(
    batches: list[BatchMoments], momentum: float | None, start: tuple[Array, Array] | None
) -> tuple[Array, Array]:
    mean, var = start or (batches[0].mean, batches[0].unbiased)
    mean, var = np.asarray(mean, np.float64), np.asarray(var, np.float64)
    for number, batch in enumerate(batches, 1):
        share = 1 / number if momentum is None else momentum
        mean = (1 - share) * mean + share * batch.mean
        var = (1 - share) * var + share * batch.unbiased
    return mean, var
