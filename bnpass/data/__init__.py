"""Data sets as a model takes them: read from files, converted, split and batched with numpy."""

from __future__ import annotations

from bnpass.data.dataset import Data, epoch_order
from bnpass.data.labels import check_labels
from bnpass.data.named import NamedData
from bnpass.data.opening import from_arrays, open_data, open_inputs, splits
from bnpass.data.recipe import Recipe
from bnpass.data.spec import InputSpec
from bnpass.data.stream import Stream

__all__ = [
    "Data",
    "InputSpec",
    "NamedData",
    "Recipe",
    "Stream",
    "check_labels",
    "epoch_order",
    "from_arrays",
    "open_data",
    "open_inputs",
    "splits",
]
