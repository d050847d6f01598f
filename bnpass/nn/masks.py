"""Which positions of a batch count in statistics, where padding does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from bnpass.data.masks import Fit, fit

Tensor = torch.Tensor
_NOW: ContextVar[Tensor | None] = ContextVar("bnpass_mask", default=None)


@contextmanager
def counting(mask: Tensor | None) -> Iterator[None]:
    """Let only these positions count while a network is run.

    Args:
        mask: ``(n, positions...)``, true where a position counts; None for all.
    """
    token = _NOW.set(mask)
    try:
        yield
    finally:
        _NOW.reset(token)


def counted(x: Tensor, axis: int = 1) -> Tensor | None:
    """The elements of a value that count, ``(m, c)``; None where all of them do.

    Args:
        x: what a norm gets.
        axis: of its channels.
    """
    mask = _NOW.get()
    if mask is None:
        return None
    how = fit(tuple(mask.shape), tuple(x.shape), axis)
    if how is Fit.ALL:
        return None
    rows = x.movedim(axis, -1)
    chosen = rows[mask.reshape(-1) if how is Fit.FLAT else mask]
    return chosen.reshape(-1, x.shape[axis])
