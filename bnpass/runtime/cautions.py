"""What makes population statistics poor, said as warnings."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from bnpass.data.order import LabelRuns
from bnpass.onnx_model.signature import Port
from bnpass.runtime.batches import BUDGET

log = logging.getLogger("bnpass.runtime")

FEW = 50
"""Elements per channel in a batch below which its moments are poor."""


class Cautions:
    """Watches a calibration: the order of the data, and how much each BN saw of it.

    Args:
        ports: the model's inputs; what a batch holds behind them is taken for labels.
        mixed: whether samples are shuffled across batches where memory allows.
        budget: bytes up to which they all are.
    """

    def __init__(self, ports: list[Port], *, mixed: bool, budget: int = BUDGET) -> None:
        self.arity, self.mixed, self.budget = len(ports), mixed, budget
        self.runs, self.bytes = LabelRuns(), 0
        self.smallest: dict[str, int] = {}
        self.batches = 0

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Pass batches on and note their labels and sizes."""
        for batch in batches:
            if isinstance(batch, tuple | list):
                self.bytes += sum(int(getattr(x, "nbytes", 0)) for x in batch[: self.arity])
                if len(batch) > self.arity:
                    self.runs.see(batch[self.arity])
            yield batch

    def saw(self, counts: dict[str, int]) -> None:
        """Note how many elements per channel each BN saw in a statistics batch."""
        self.batches += 1
        for name, count in counts.items():
            self.smallest[name] = min(count, self.smallest.get(name, count))

    def warn(self, method: str) -> None:
        """Log what was found."""
        for name, count in self.smallest.items():
            if count < FEW:
                log.warning("population statistics: %s saw only %d elements per channel in a "
                            "batch; give more samples or larger batches", name, count)
        if self.runs.sorted and not (self.mixed and self.bytes <= self.budget):
            log.warning("population statistics: the labels come sorted and the data is too large "
                        "or too irregular to be shuffled as a whole; batches of one class put the "
                        "variance off by up to 2x: shuffle it")
        if method == "ema":
            log.warning("population statistics: a moving average over %d batches depends on the "
                        "last of them and on the old statistics; pooled takes as long and is "
                        "exact", self.batches)
