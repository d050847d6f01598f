"""Batches of inputs for statistics, from whatever people hold their data in."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from bnpass.data.dataset import Data
from bnpass.data.order import LabelRuns
from bnpass.errors import InputError

log = logging.getLogger("bnpass.training")

Tensor = torch.Tensor
Inputs = tuple[Tensor, ...]


class Source:
    """Inputs that can be walked over in batches of a size that is known only later.

    Args:
        data: a :class:`Data`, a torch Dataset, a tensor or array ``(n, ...)`` (shuffled with the
            seed), or an iterable of batches of inputs or (inputs, labels) (taken as they come).
        arity: number of inputs that the network takes.
        seed: of the shuffling.
    """

    def __init__(self, data: Any, arity: int = 1, seed: int = 0) -> None:
        self.data, self.arity, self.seed = data, arity, seed
        self._fetch = _fetcher(data)
        self._first: Any = None
        if self._fetch is None:
            self.data = iter(data)
            self._first = next(self.data, None)
        self.empty = (self._first is None) if self._fetch is None else len(data) == 0

    def example(self, count: int) -> Inputs:
        """A few samples, to try the network with."""
        if self._fetch is not None:
            index = np.arange(min(count, len(self.data)))
            return _inputs(self._fetch(index), self.arity)
        return tuple(x[:count] for x in _inputs(self._first, self.arity))

    def batches(self, size: int) -> Iterator[Inputs]:
        """Batches of at most ``size`` samples, the remainder spread over them."""
        if self._fetch is None:
            yield from _regrouped(self._stream(), size)
            return
        count = len(self.data)
        order = np.random.default_rng((self.seed, 0xB47C)).permutation(count)
        for index in np.array_split(order, _parts(count, size)):
            yield _inputs(self._fetch(index), self.arity)

    def _stream(self) -> Iterator[Inputs]:
        runs = LabelRuns()
        item, self._first = self._first, None
        while item is not None:
            _see(runs, item, self.arity)
            yield _inputs(item, self.arity)
            item = next(self.data, None)
        _warn(runs)


def _fetcher(data: Any) -> Callable[[np.ndarray[Any, Any]], Any] | None:
    """How to take samples by index, or ``None`` for an iterable of batches."""
    if isinstance(data, Data):
        return data.take
    if isinstance(data, Tensor | np.ndarray):
        return lambda index: data[index]
    dataset = isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__len__")
    if dataset and not isinstance(data, torch.utils.data.IterableDataset):
        return lambda index: torch.utils.data.default_collate([data[int(i)] for i in index])
    if not isinstance(data, Iterable):
        raise InputError(f"cannot take batches from {type(data).__name__}",
                         "give a DataLoader, a Dataset, an array or an iterable of batches")
    return None


def _inputs(item: Any, arity: int) -> Inputs:
    """The network's inputs in what a loader yields: without labels, as tensors."""
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
    if len(parts) < arity:
        raise InputError(f"a batch of {len(parts)} tensors for a network with {arity} inputs",
                         "the loader must yield inputs, or (inputs, labels)")
    return tuple(torch.as_tensor(x) for x in parts[:arity])


def _regrouped(stream: Iterable[Inputs], size: int) -> Iterator[Inputs]:
    """Cut a stream into batches of ``size``; the last two share what is left evenly."""
    held: list[Inputs] = []
    count = 0
    for inputs in stream:
        held.append(inputs)
        count += len(inputs[0])
        while count >= 2 * size:
            joined = _join(held)
            yield tuple(x[:size] for x in joined)
            held, count = [tuple(x[size:] for x in joined)], count - size
    if count:
        joined = _join(held)
        parts = _parts(count, size)
        yield from zip(*(x.tensor_split(parts) for x in joined), strict=True)


def _parts(count: int, size: int) -> int:
    """Into how many batches to deal samples: of at most ``size``, but never a single one."""
    return max(1, min(math.ceil(count / size), count // 2))


def _join(held: list[Inputs]) -> Inputs:
    return tuple(torch.cat(parts) if len(parts) > 1 else parts[0]
                 for parts in zip(*held, strict=True))


def _see(runs: LabelRuns, item: Any, arity: int) -> None:
    if not isinstance(item, tuple | list) or len(item) <= arity:
        return
    labels = item[arity]
    if isinstance(labels, Tensor):  # numpy takes neither one on a GPU nor bfloat16
        labels = None if labels.is_floating_point() else labels.detach().cpu()
    runs.see(labels)


def _warn(runs: LabelRuns) -> None:
    if runs.sorted:
        log.warning("population statistics: the labels come sorted; batches of one class put "
                    "the variance off by up to 2x: shuffle the loader")
