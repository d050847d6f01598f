"""Moments of what a BN sees, added up batch by batch in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass
class Moments:
    """Mean and variance per channel over all elements seen, and sums over the batches.

    Attributes:
        count: elements per channel, over all batches.
        mean: mean over all of them ``(c,)``, float64.
        squares: sum of squared distances from :attr:`mean` ``(c,)``, float64.
        batches: number of batches.
        sum_mean: sum of the batches' means (Algorithm 2 of the paper).
        sum_unbiased: sum of the batches' unbiased variances.
        ema: moving average ``(mean, var)`` over the batches in their order, or ``None``.
        smallest: the fewest elements per channel that a batch had.
    """

    count: float = 0.0
    mean: Any = 0.0
    squares: Any = 0.0
    batches: int = 0
    sum_mean: Any = 0.0
    sum_unbiased: Any = 0.0
    ema: tuple[Tensor, Tensor] | None = None
    smallest: float = float("inf")

    def add(self, x: Tensor, momentum: float | None = None) -> None:
        """Take in a batch ``(n, c, ...)``; ``momentum`` is that of the moving average.

        The batch's own moments are torch's (Welford's algorithm, in float32 or better).
        """
        axes = [d for d in range(x.ndim) if d != 1]
        values = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        var, mean = (v.double().cpu() for v in torch.var_mean(values, axes, correction=0))
        count = x.numel() / x.shape[1]
        unbiased = var * (count / (count - 1))
        self.merge(Moments(count, mean, var * count, 1, mean, unbiased, None, count))
        share = 1 / self.batches if self.ema is None or momentum is None else momentum
        old = self.ema or (mean, unbiased)
        self.ema = (old[0].lerp(mean, share), old[1].lerp(unbiased, share))

    def merge(self, other: Moments) -> None:
        """Take in other moments, by the law of total variance (Chan et al. 1983)."""
        if not other.batches:
            return
        count = self.count + other.count
        apart = other.mean - self.mean
        self.squares = self.squares + other.squares
        self.squares = self.squares + apart**2 * (self.count * other.count / count)
        self.mean = self.mean + apart * (other.count / count)
        self.count = count
        self.batches += other.batches
        self.sum_mean = self.sum_mean + other.sum_mean
        self.sum_unbiased = self.sum_unbiased + other.sum_unbiased
        self.smallest = min(self.smallest, other.smallest)

    def result(self, method: str) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(c,)``, float64, by ``"pooled"``, ``"paper"`` or ``"ema"``."""
        if method == "pooled":
            return self.mean, self.squares / self.count
        if method == "paper":
            return self.sum_mean / self.batches, self.sum_unbiased / self.batches
        assert self.ema is not None
        return self.ema
