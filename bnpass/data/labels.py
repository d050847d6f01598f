"""Labels: brought to one form, and checked against a model's outputs."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from bnpass.errors import InputError

log = logging.getLogger("bnpass.data")

Array = npt.NDArray[Any]


def tidy_labels(y: Array, count: int, where: str) -> Array:
    """Bring labels to int64 ``(n, ...)`` classes, or float32 ``(n, ...)`` targets.

    ``(n, 1)`` loses its last axis; one-hot rows become classes; whole numbers kept as floats
    become integers.

    Raises:
        InputError: not as many labels as samples, NaN, or something that is no number.
    """
    y = np.asarray(y)
    if y.dtype.kind not in "iufb":
        raise InputError(f"{where}: labels are {y.dtype}, not numbers",
                         "store class numbers 0, 1, 2, ...")
    if y.ndim == 0 or len(y) != count:
        found = 0 if y.ndim == 0 else len(y)
        raise InputError(f"{where}: {count} samples but {found} labels", "give one label a sample")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise InputError(f"{where}: labels hold NaN or infinity", "remove those samples")
    if y.ndim == 2 and _one_hot(y):
        classes: Array = np.argmax(y, axis=1).astype(np.int64)
        return classes
    if y.dtype.kind == "f" and not (y.ndim == 1 and (y == np.rint(y)).all()):
        return y.astype(np.float32)
    return y.astype(np.int64)


def _one_hot(y: Array) -> bool:
    return bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())


def check_labels(y: Array, classes: int, *, where: str = "data") -> tuple[int, ...]:
    """Check that class labels fit a model with ``classes`` outputs.

    Args:
        y: integer labels of any shape.
        classes: number of classes that the model tells apart.
        where: named in the message.

    Returns:
        The classes of which there is no sample; they are also warned about.

    Raises:
        InputError: labels are not whole numbers, or outside of 0 .. classes-1.
    """
    if y.dtype.kind not in "iub":
        raise InputError(f"{where}: labels are {y.dtype}, not class numbers",
                         "use the mse or bce loss for targets that are no classes")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        hint = f"labels must be 0 to {classes - 1}"
        if low >= 1 and high == classes:
            hint += ": these look as if they count from 1, subtract 1"
        raise InputError(f"{where}: labels from {low} to {high} do not fit {classes} outputs", hint)
    present = np.bincount(y.reshape(-1).astype(np.int64), minlength=classes)
    missing = tuple(int(c) for c in np.flatnonzero(present == 0))
    if missing:
        names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        log.warning("%s: no sample of class %s", where, names)
    return missing
