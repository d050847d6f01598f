"""The batches that statistics are taken over, from whatever people hold their data in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from bnpass.data.order import LabelRuns
from bnpass.data.protocol import Arguments, Takes, bind, unlabelled
from bnpass.data.trees import count, is_array, joined, mapped, nbytes, structure
from bnpass.errors import InputError

Array = np.ndarray[Any, Any]
BUDGET = 2**30
"""Bytes of input data that are held to be shuffled as a whole; more is shuffled piece by piece."""


class Source:
    """Inputs that can be walked over in batches of a size that is known only later.

    Samples are shuffled with the seed and dealt evenly: a data set as a whole, an iterable of
    batches as a whole within the budget of memory and piece by piece beyond. Samples of different
    shapes never share a batch. ``in_order`` takes the batches of an iterable as they come instead
    (cut where they are too large), as a moving average wants them.

    Args:
        data: a :class:`bnpass.data.Data`, a torch Dataset, an array ``(n, ...)``, a mapping of
            them, or an iterable of batches of inputs or (inputs, targets).
        takes: what the network takes.
        seed: of the shuffle; None keeps the order.
        budget: see above.
        regular: whether every input has the samples on its axis 0; else batches stay as they are.
        check: is shown every batch with its number as it comes.
    """

    def __init__(
        self, data: Any, takes: Takes, seed: int | None = 0, *, budget: int = BUDGET,
        regular: bool = True, check: Callable[[int, Arguments], None] = lambda _, __: None,
    ) -> None:
        self.takes, self.seed, self.budget, self.regular = takes, seed, budget, regular
        self.labels, self.bytes = LabelRuns(), 0
        self._fetch, self._check = _fetcher(data, takes), check
        self._count = len(data) if self._fetch is not None else 0
        self._stream: Iterator[Any] = iter(() if self._fetch else items(data))
        self._first: Any = next(self._stream, None) if self._fetch is None else None
        self.empty = not self._count and self._first is None

    @property
    def mixed(self) -> bool:
        """Whether the samples were shuffled as a whole."""
        return self._fetch is not None or (self.regular and self.bytes <= self.budget)

    def example(self, size: int) -> Arguments:
        """The inputs of a few samples, to try the network with."""
        if self._fetch is not None:
            return self._fetch(np.arange(min(size, self._count)))
        call = unlabelled(self._first, self.takes)[0]
        return cut(call, slice(0, size)) if self._samples(call) else call

    def batches(self, size: int, *, in_order: bool = False) -> Iterator[Arguments]:
        """Batches of at most ``size`` samples (of 2 at least), the remainder spread over them."""
        size = max(2, size)
        if self._fetch is not None:
            order = _order(self._count, self._generator())
            for number, index in enumerate(np.array_split(order, parts(self._count, size))):
                call = self._fetch(index)
                self._check(number, call)
                yield call
        elif in_order:
            yield from self._cut(size)
        else:
            yield from self._regrouped(size)

    def _generator(self) -> np.random.Generator | None:
        return None if self.seed is None else np.random.default_rng(self.seed)

    def _calls(self) -> Iterator[Arguments]:
        item, self._first = self._first, None
        number = -1
        while item is not None:
            call, targets = unlabelled(item, self.takes)
            self._check(number := number + 1, call)
            self.bytes += nbytes(call.trees)
            self.labels.see(targets)
            yield call
            item = next(self._stream, None)

    def _samples(self, call: Arguments) -> int:
        return (count(call.trees) or 0) if self.regular else 0

    def _cut(self, size: int) -> Iterator[Arguments]:
        for call in self._calls():
            found = self._samples(call)
            for index in np.array_split(np.arange(found), parts(found, size)) if found else ():
                yield call if len(index) == found else cut(call, index)
            if not found:
                yield call

    def _regrouped(self, size: int) -> Iterator[Arguments]:
        generator = self._generator()
        held: dict[Any, _Group] = {}
        for call in self._calls():
            samples = self._samples(call)
            if not samples:
                yield call
                continue
            held.setdefault(structure(call.trees), _Group()).add(call, samples)
            if sum(group.bytes for group in held.values()) > self.budget:
                for group in held.values():
                    # Joining is worth its copy only when several full batches come out of it.
                    if group.samples >= 4 * size:
                        yield from group.full(size, generator)
        for group in held.values():
            yield from group.rest(size, generator)


class _Group:
    """Batches of the same structure that wait to be joined."""

    def __init__(self) -> None:
        self.calls: list[Arguments] = []
        self.samples = self.bytes = 0

    def add(self, call: Arguments, samples: int) -> None:
        self.calls.append(call)
        self.samples += samples
        self.bytes += nbytes(call.trees)

    def full(self, size: int, generator: np.random.Generator | None) -> Iterator[Arguments]:
        """Give out full batches; what stays is enough to spread the remainder well."""
        whole = _joined(self.calls)
        order = _order(self.samples, generator)
        while len(order) >= 2 * size:
            yield cut(whole, order[:size])
            order = order[size:]
        self.calls, self.samples, self.bytes = [], 0, 0
        self.add(cut(whole, order), len(order))

    def rest(self, size: int, generator: np.random.Generator | None) -> Iterator[Arguments]:
        """Give out everything, dealt evenly."""
        if self.samples:
            whole, order = _joined(self.calls), _order(self.samples, generator)
            for index in np.array_split(order, parts(self.samples, size)):
                yield cut(whole, index)


def parts(samples: int, size: int) -> int:
    """Into how many batches to deal samples: of at most ``size``, but never a single one."""
    return max(1, min(-(-samples // size), samples // 2))


def cut(call: Arguments, index: Any) -> Arguments:
    """Some samples of a batch."""
    return Arguments(*(mapped(tree, lambda x: _taken(x, index)) for tree in call.trees))


def _taken(x: Any, index: Any) -> Any:
    if hasattr(x, "detach") and isinstance(index, np.ndarray):
        import torch

        return x[torch.from_numpy(index).to(x.device)]
    return x[index]


def _joined(calls: list[Arguments]) -> Arguments:
    return Arguments(*(joined(trees) for trees in zip(*(c.trees for c in calls), strict=True)))


def _order(samples: int, generator: np.random.Generator | None) -> Array:
    return np.arange(samples) if generator is None else generator.permutation(samples)


def _fetcher(data: Any, takes: Takes) -> Callable[[Array], Arguments] | None:
    """How to take samples by index, or None for batches that come one after the other."""
    if hasattr(data, "take") and hasattr(data, "__len__") and not is_array(data):
        return lambda index: bind(data.take(index)[0], takes)
    mapped_style = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if mapped_style and not hasattr(data, "__iter__"):
        from torch.utils.data import default_collate

        return lambda index: unlabelled(default_collate([data[int(i)] for i in index]), takes)[0]
    return None


def items(data: Any) -> Iterable[Any]:
    """The batches of a data set, one array (one batch), or an iterable, as they come."""
    if is_array(data) or isinstance(data, Mapping):
        return [data]
    if hasattr(data, "batches"):
        return data.batches(1000, shuffle=False, seed=0, drop_last=False)  # type: ignore[no-any-return]
    if not isinstance(data, Iterable):
        raise InputError(f"cannot take batches from {type(data).__name__}",
                         "give a DataLoader, a Dataset, an array or an iterable of batches")
    return data
