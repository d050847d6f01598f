"""Labelled samples with several arrays each: inputs and targets by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bnpass.data.dataset import Data, epoch_order, random_parts
from bnpass.data.labels import tidy_labels
from bnpass.data.protocol import MASK, TARGET, Slot, Takes, missing
from bnpass.data.recipe import infer
from bnpass.data.spec import InputSpec
from bnpass.errors import InputError

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class NamedData:
    """Samples whose inputs, and targets, are arrays by name.

    Attributes:
        inputs: each input's samples, all of the same length.
        targets: by name; empty where there are none.
        rows: the samples that belong to this set.
        where: the source, for messages.
        mask: which positions count in statistics, ``(n, positions...)``; None for all.
    """

    inputs: dict[str, Data]
    targets: dict[str, Array]
    rows: Array
    where: str = "data"
    mask: Array | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def recipe(self) -> dict[str, Any]:
        """How each input is converted, as plain JSON types."""
        return {"inputs": {name: data.recipe for name, data in self.inputs.items()}}

    @property
    def labelled(self) -> bool:
        """Whether there are targets."""
        return bool(self.targets)

    @property
    def labels(self) -> Any:
        """The targets of this set: the only array, or arrays by name.

        Raises:
            InputError: the data has none.
        """
        if not self.targets:
            raise InputError(f"{self.where}: has no labels", "training needs labelled data")
        return self._targets(self.rows)

    def _targets(self, rows: Array) -> Any:
        found = {name: target[rows] for name, target in self.targets.items()}
        return next(iter(found.values())) if len(found) == 1 else found or None

    def take(self, index: Array) -> tuple[dict[str, Array], Any]:
        """Samples by input name, as the model takes them, and their targets.

        What they count by, where there is a mask, goes with the inputs.
        """
        rows = self.rows[np.asarray(index)]
        found = {name: data.take(rows)[0] for name, data in self.inputs.items()}
        if self.mask is not None:
            found[MASK] = self.mask[rows]
        return found, self._targets(rows)

    def subset(self, index: Array) -> NamedData:
        """The samples at these positions, as a set of their own that shares the storage."""
        return replace(self, rows=self.rows[np.asarray(index)])

    def split(self, fraction: float, seed: int = 0) -> tuple[NamedData, NamedData]:
        """Two disjoint random parts, ``(1 - fraction, fraction)``; as :meth:`Data.split`."""
        kept, held = random_parts(len(self), fraction, seed)
        return self.subset(kept), self.subset(held)

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, drop_last: bool = False,
        epoch: int = 0,
    ) -> Iterator[tuple[dict[str, Array], Any]]:
        """Walk over the set once in batches, as :meth:`Data.batches`."""
        order = epoch_order(len(self), seed, epoch) if shuffle else np.arange(len(self))
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            if len(index) == batch_size or not drop_last:
                yield self.take(index)

    def cached(self, limit: int = 0) -> NamedData:  # noqa: ARG002 - as Data's
        """The set itself: its arrays lie in memory as they are."""
        return self


def named_data(
    arrays: Mapping[str, Array], specs: Mapping[str, InputSpec], *, labels: bool, where: str,
    options: dict[str, Any], mask: str = "",
) -> NamedData:
    """Arrays by name as inputs and targets of a model.

    Args:
        arrays: those that are called like an input are inputs, all others targets
            (``target.NAME`` where a target has an input's name).
        specs: what each input takes.
        labels: whether there must be a target.
        where: the source, for messages.
        options: of :func:`bnpass.data.recipe.infer`; scale, mean and std are for floating inputs.
        mask: name of the array that says which positions count; it may be an input as well.

    Raises:
        InputError: an input has no array, lengths differ, or an array does not fit.
    """
    takes = Takes(tuple(Slot(name, kind=spec.kind) for name, spec in specs.items()))
    for slot in takes.slots:
        if slot.name not in arrays:
            raise missing(slot, arrays, where="the file")
    count = len(arrays[takes.slots[0].name])
    inputs = {}
    for name, spec in specs.items():
        x = arrays[name]
        if not x.ndim or len(x) != count:
            raise InputError(f"{where}: {name!r} holds {len(x) if x.ndim else 0} samples, "
                             f"{takes.slots[0].name!r} {count}", "give one row a sample")
        recipe = infer(x, spec, **(options if spec.floating else {}), source={"format": "npz"})
        inputs[name] = Data(x, None, recipe, np.arange(count), where=f"{where}: {name}")
    counted = _mask(arrays, mask, count, where) if mask else None
    targets = {name.removeprefix(TARGET): tidy_labels(y, count, f"{where}: {name}")
               for name, y in arrays.items() if name not in specs and name != mask}
    if labels and not targets:
        raise InputError(f"{where}: has no labels", "arrays that are no inputs are the targets")
    return NamedData(inputs, targets, np.arange(count), where, counted)


def _mask(arrays: Mapping[str, Array], name: str, count: int, where: str) -> Array:
    """The array of a name as true and false.

    Raises:
        InputError: it is not there, has another length, or leaves nothing.
    """
    if name not in arrays:
        raise InputError(f"no array {name!r} for the mask", f"the file holds {', '.join(arrays)}")
    mask = np.asarray(arrays[name] != 0)
    if not mask.ndim or len(mask) != count or not mask.any():
        raise InputError(f"{where}: the mask {name!r} of shape {list(mask.shape)} "
                         + ("leaves no position" if mask.size and not mask.any() else
                            f"is not for {count} samples"),
                         "give one row a sample, not 0 where a position counts")
    return mask
