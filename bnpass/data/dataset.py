"""A labelled set of samples that converts itself to what a model takes, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bnpass.data.recipe import Recipe, Samples
from bnpass.errors import InputError, UsageError

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Data:
    """Samples, labels and the conversion between how they are stored and what a model takes.

    Attributes:
        x: stored samples, first axis the sample; a file's may lie on disk.
        y: labels ``(n, ...)``, int64 classes or float32 targets, or ``None``.
        converter: what :meth:`take` does to stored samples.
        rows: the samples that belong to this set (indices into ``x`` and ``y``).
        class_names: names of the classes where the format knows them.
        where: the source, for messages.
    """

    x: Samples
    y: Array | None
    converter: Recipe
    rows: Array
    class_names: tuple[str, ...] = ()
    where: str = "data"
    _kept: list[Data] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def recipe(self) -> dict[str, Any]:
        """The conversion as plain JSON types; ``open_data(..., recipe=...)`` replays it."""
        return self.converter.to_dict()

    @property
    def labels(self) -> Array:
        """The labels of this set, in its order.

        Raises:
            InputError: the data has none.
        """
        if self.y is None:
            raise InputError(f"{self.where}: has no labels", "training needs labelled data")
        return self.y[self.rows]

    @property
    def classes(self) -> int:
        """Number of classes: of named ones, or the largest label plus one; 0 without classes."""
        if self.class_names:
            return len(self.class_names)
        if self.y is None or self.y.dtype.kind not in "iu":
            return 0
        return int(self.y.max()) + 1

    def take(self, index: Array) -> tuple[Array, Array | None]:
        """Samples ``(len(index), *shape)`` as the model takes them, and their labels.

        Args:
            index: positions in this set, ``0 .. len(self) - 1``.

        Raises:
            InputError: a sample holds NaN or infinity.
        """
        rows = self.rows[np.asarray(index)]
        batch = self.converter.apply(np.asarray(self.x[rows]))
        if batch.dtype.kind == "f" and not np.isfinite(batch).all():
            bad = rows[~np.isfinite(batch).reshape(len(batch), -1).all(axis=1)][0]
            raise InputError(f"{self.where}: sample {int(bad)} holds NaN or infinity",
                             "remove such samples or fill in the values")
        return batch, None if self.y is None else self.y[rows]

    def subset(self, index: Array) -> Data:
        """The samples at these positions, as a set of their own that shares the storage."""
        return replace(self, rows=self.rows[np.asarray(index)], _kept=[])

    def split(self, fraction: float, seed: int = 0) -> tuple[Data, Data]:
        """Two disjoint random parts, ``(1 - fraction, fraction)``; the same for the same seed.

        Raises:
            UsageError: the fraction leaves one of the parts empty.
        """
        kept, held = random_parts(len(self), fraction, seed)
        return self.subset(kept), self.subset(held)

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, drop_last: bool = False,
        epoch: int = 0,
    ) -> Iterator[tuple[Array, Array | None]]:
        """Walk over the set once in batches ``(samples, labels)``.

        Args:
            batch_size: samples a batch; the last may be smaller unless ``drop_last``.
            shuffle: in the order of :func:`epoch_order` for this seed and epoch.
            seed: of the order.
            drop_last: leave a smaller last batch out.
            epoch: another number gives another order.
        """
        order = epoch_order(len(self), seed, epoch) if shuffle else np.arange(len(self))
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            if len(index) == batch_size or not drop_last:
                yield self.take(index)

    def cached(self, limit: int = 1 << 30) -> Data:
        """This set converted once and held in memory, when that takes at most ``limit`` bytes.

        Asked again, the same converted set is given. What is read from files when it is asked for
        (decoded images) stays as it is.
        """
        if self.held:
            return self
        if self._kept:
            return self._kept[0]
        size = np.dtype("float32" if self.converter.dtype == "bfloat16" else self.converter.dtype)
        bytes_converted = len(self) * math.prod(self.converter.shape) * size.itemsize
        if bytes_converted > limit or not isinstance(self.x, np.ndarray):
            return self
        whole = np.empty((len(self), *self.converter.shape), size)
        for start in range(0, len(self), 4096):
            part = np.arange(start, min(start + 4096, len(self)))
            whole[part] = self.take(part)[0]
        kept = Recipe(self.converter.shape, str(size), self.converter.dtype, self.converter.shape,
                      source={"format": "memory"})
        self._kept.append(replace(
            self, x=whole, y=None if self.y is None else self.labels,
            converter=kept, rows=np.arange(len(self)), _kept=[]))
        return self._kept[0]

    @property
    def held(self) -> bool:
        """Whether this set lies in memory as the model takes it, in its order."""
        converted = self.converter.stored_shape == self.converter.shape
        plain = self.converter.source.get("format") == "memory"
        return converted and plain and len(self.rows) == len(self.x)


def random_parts(count: int, fraction: float, seed: int) -> tuple[Array, Array]:
    """Positions of ``count`` samples in two random parts, ``(1 - fraction, fraction)``.

    Raises:
        UsageError: the fraction leaves one of the parts empty.
    """
    held = round(count * fraction)
    if not 0 < held < count:
        raise UsageError(f"{fraction:g} of {count} samples leaves an empty part",
                         "give a fraction between 0 and 1 that keeps samples on both sides")
    order = np.random.default_rng((seed, 0x5EED)).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def epoch_order(count: int, seed: int, epoch: int) -> Array:
    """A permutation of ``count`` samples that depends on the seed and the epoch alone.

    Resuming in the middle of an epoch thus needs no stored state of a random generator.
    """
    return np.random.default_rng((seed, epoch)).permutation(count)
