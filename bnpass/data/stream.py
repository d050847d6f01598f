"""Batches of people's own: a DataLoader, or anything else that yields (inputs, targets)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from bnpass.data.protocol import MASK
from bnpass.errors import InputError


@dataclass(frozen=True, eq=False)
class Stream:
    """An iterable of batches, walked over once an epoch.

    Attributes:
        make: gives the iterable; called anew for a pass where it gave an iterator.
        where: the source, for messages.
        first: what the first call of ``make`` gave.
    """

    make: Callable[[], Iterable[Any]] | None
    first: Iterable[Any]
    where: str = "data"
    _peeked: list[Any] = field(default_factory=list, repr=False)

    @property
    def once(self) -> bool:
        """Whether there is a single pass: an iterator, and nothing that makes it anew."""
        return self.make is None and iter(self.first) is self.first

    def peek(self) -> Any:
        """The first batch, which stays where it is.

        Raises:
            InputError: there is none.
        """
        if not self._peeked:
            found = next(iter(self.first if self.once else self), None)
            if found is None:
                raise InputError(f"{self.where}: gives no batch", "it must give at least one")
            self._peeked.append(found)
        return self._peeked[0]

    @property
    def length(self) -> int | None:
        """Batches in one pass, or None where the iterable does not know."""
        try:
            return len(self.first)  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def recipe(self) -> dict[str, Any]:
        """Batches come as the network takes them."""
        return {"format": "batches"}

    def passes(self) -> Iterator[Iterator[Any]]:
        """One iterator over the batches for each pass.

        Raises:
            InputError: a second pass, where the first used up what was given.
        """
        if self.once:
            yield chain(self._peeked, self.first)
        else:
            yield iter(self)
        while True:
            if self.once:
                raise InputError(f"{self.where}: the batches are used up after one pass",
                                 "give a DataLoader, a list, or a function that makes them anew")
            yield iter(self)

    def __iter__(self) -> Iterator[Any]:
        """One pass; of an iterator made anew where that is possible."""
        if iter(self.first) is self.first and self.make is not None:
            return iter(self.make())
        return iter(self.first)


class _Masked:
    """Mappings with one of their arrays as the mask."""

    def __init__(self, stream: Stream, name: str, kept: set[str]) -> None:
        self.stream, self.name, self.kept = stream, name, kept

    def __len__(self) -> int:
        if self.stream.length is None:
            raise TypeError("batches that nobody has counted")
        return self.stream.length

    def __iter__(self) -> Iterator[Any]:
        for batch in self.stream:
            if not isinstance(batch, Mapping) or self.name not in batch:
                held = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
                raise InputError(f"{self.stream.where}: no array {self.name!r} for the mask",
                                 f"a batch holds {held}; it must be a mapping with that name")
            rest = {key: value for key, value in batch.items()
                    if key != self.name or key in self.kept}
            yield {**rest, MASK: batch[self.name]}


def with_mask(stream: Stream, name: str, inputs: Iterable[str]) -> Stream:
    """The same batches, mappings all of them, with the array of a name as their mask.

    Args:
        stream: the batches.
        name: of the mask; it may be one of the ``inputs`` as well, and is no target.
        inputs: names of the network's inputs.
    """
    batches = _Masked(stream, name, set(inputs))
    return Stream(None, iter(batches) if stream.once else batches, stream.where)
