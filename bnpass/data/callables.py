"""``package.module:callable``: people's own data sets and losses, by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnpass.data.stream import Stream
from bnpass.data.trees import is_array
from bnpass.errors import InputError, close_matches

Array = npt.NDArray[Any]


def is_callable_spec(spec: str) -> bool:
    """Whether a string reads as ``package.module:callable``."""
    module, colon, name = spec.partition(":")
    return bool(colon) and name.isidentifier() and all(p.isidentifier() for p in module.split("."))


def load_callable(spec: str) -> Callable[..., Any]:
    """The callable that ``package.module:callable`` names; the current directory is searched too.

    Raises:
        InputError: no such module, its import fails, or no such callable in it.
    """
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{spec}: cannot import {module_name}: {error}",
                         "the module must be installed or lie in the current directory") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise InputError(f"{spec}: {module_name} has no callable {name!r}",
                         close_matches(name, vars(module)) or "check the name behind the colon")
    return found  # type: ignore[no-any-return]


def read_callable(spec: str, split: str, rank: int | None = None) -> Any:
    """What a callable gives: arrays ``(x, y)``, arrays by name, a torch Dataset, or batches.

    The callable is called with ``split=`` when its signature takes it.

    Args:
        spec: names it.
        split: which samples.
        rank: axes of one sample, where the model says so: tells a list of batches from a data set.

    Returns:
        ``(x, y)`` with ``y`` None where there are none, a dict of arrays, or a :class:`Stream`.

    Raises:
        InputError: it cannot be imported or returns something else.
    """
    function = load_callable(spec)
    call = partial(function, split=split) if takes_split(function) else function
    result = call()
    if isinstance(result, Mapping):
        return {name: _array(value) for name, value in result.items()}
    if isinstance(result, tuple) and len(result) == 2 and all(map(is_array, result)):
        return _array(result[0]), _array(result[1])
    if is_array(result):
        return _array(result), None
    mapped = hasattr(result, "__getitem__") and hasattr(result, "__len__")
    if mapped and not _are_batches(result, rank):
        samples = DatasetSamples(result, spec)
        return samples, samples.labels()
    if isinstance(result, Iterable):
        return Stream(call, result, spec)
    raise InputError(f"{spec}: returned {type(result).__name__}",
                     "return arrays (x, y), a torch Dataset, a DataLoader, or an iterable of "
                     "batches (inputs, targets)")


def _are_batches(result: Any, rank: int | None) -> bool:
    """Whether a list holds batches, not samples; a Dataset always holds samples."""
    if not isinstance(result, list | tuple) or not result:
        return False
    first = result[0]
    if not isinstance(first, tuple | list) or len(first) != 2:
        return True
    if not is_array(first[0]):
        return not isinstance(first[0], int | float)
    if rank is not None:
        return len(first[0].shape) > rank
    return is_array(first[1]) and len(first[1].shape) > 0 and len(first[0]) == len(first[1])


def takes_split(function: Callable[..., Any]) -> bool:
    """Whether a callable has a parameter ``split``."""
    import inspect

    try:
        return "split" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # a tensor, without importing torch for it
        value = value.detach().cpu()
    return np.asarray(value)


class DatasetSamples:
    """A map-style dataset of ``(sample, label)`` or samples as an array-like ``(n, ...)``."""

    def __init__(self, dataset: Any, where: str) -> None:
        self._dataset = dataset
        if len(dataset) == 0:
            raise InputError(f"{where}: an empty dataset", "it must hold at least one sample")
        first = dataset[0]
        self.labelled = isinstance(first, tuple | list) and len(first) == 2
        sample = _array(first[0] if self.labelled else first)
        self.shape: tuple[int, ...] = (len(dataset), *sample.shape)
        self.dtype: np.dtype[Any] = sample.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Array:
        items = [self._dataset[int(i)] for i in np.atleast_1d(np.arange(len(self))[index])]
        samples = [_array(item[0] if self.labelled else item) for item in items]
        return np.stack(samples) if np.ndim(index) or isinstance(index, slice) else samples[0]

    def labels(self) -> Array | None:
        """Every label: ``dataset.targets`` or ``.labels`` when there, else one walk over it."""
        if not self.labelled:
            return None
        # A transform of the targets is applied only when a sample is asked for.
        plain = getattr(self._dataset, "target_transform", None) is None
        for name in ("targets", "labels"):
            known = getattr(self._dataset, name, None) if plain else None
            if known is not None and len(known) == len(self):
                return np.asarray(_array(known))
        return np.asarray([_array(self._dataset[i][1]) for i in range(len(self))])
