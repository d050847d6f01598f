"""What people may hand over to train on, brought to one of three forms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bnpass.data import Data, NamedData, Stream, from_arrays
from bnpass.data.callables import DatasetSamples
from bnpass.data.protocol import labelled
from bnpass.data.trees import is_array, mapped
from bnpass.errors import InputError

if TYPE_CHECKING:
    from bnpass.training.feed import Reader, Samples


def as_samples(data: Any) -> Samples:
    """Data, a torch Dataset of (sample, target), a DataLoader, or any iterable of batches.

    Raises:
        InputError: it is none of them.
    """
    if isinstance(data, Data | NamedData | Stream):
        return data
    if isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__len__") and not hasattr(
            data, "__iter__"):
        samples = DatasetSamples(data, "data")
        return from_arrays(samples, samples.labels())
    if isinstance(data, Iterable) and not is_array(data):
        return Stream(None, data)
    raise InputError(f"cannot train on {type(data).__name__}",
                     "give bnpass.data.from_arrays(x, y), a torch Dataset, a DataLoader, or an "
                     "iterable of batches (inputs, targets)")


def labels_of(data: Samples, reader: Reader) -> Any:
    """All targets of a set, or those of the first batch, as numpy's arrays.

    Raises:
        InputError: there are none.
    """
    if not isinstance(data, Stream):
        return data.labels
    assert reader.takes is not None
    return mapped(labelled(data.peek(), reader.takes)[1], _plain)


def _plain(value: Any) -> np.ndarray[Any, Any]:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
