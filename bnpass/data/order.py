"""The order in which labelled samples come: sorted by class, or mixed."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnpass.data.trees import is_array


class LabelRuns:
    """Notices labels that come sorted: class after class, or one class a batch."""

    def __init__(self) -> None:
        self.samples = self.changes = 0
        self.seen: set[int] = set()
        self.last: int | None = None

    def see(self, labels: Any) -> None:
        """Take in the labels of a batch; anything but one whole number a sample is left alone."""
        if not is_array(labels) or "float" in str(labels.dtype):  # numpy has no bfloat16
            return
        found = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
        if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
            return
        self.changes += int(np.count_nonzero(np.diff(found))) + (int(found[0]) != self.last)
        self.last = int(found[-1])
        self.seen.update(np.unique(found).tolist())
        self.samples += len(found)

    @property
    def sorted(self) -> bool:
        """Whether there were far fewer changes of class than a mixed order would have."""
        classes = len(self.seen)
        if classes < 2 or self.samples < 4 * classes:
            return False
        return self.changes < max(2 * classes, 0.1 * self.samples)
