"""What makes population statistics poor, said as warnings."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from bnpass.data import masks
from bnpass.statistics.moments import Moments
from bnpass.statistics.source import Source

log = logging.getLogger("bnpass.statistics")

FEW = 50
"""Elements per channel in a batch below which its moments are poor."""



def warn(moments: Mapping[str, Moments], method: str, source: Source) -> None:
    """Log what makes the statistics poor.

    Args:
        moments: of each BN by its name, over all batches and processes.
        method: by which they become statistics.
        source: where the batches came from.
    """
    for name, seen in moments.items():
        if not seen.seen:
            log.warning("population statistics: %s got no input and keeps its own", name)
        elif seen.smallest < FEW:
            log.warning("population statistics: %s saw only %d elements per channel in a batch; "
                        "give more samples or larger batches", name, seen.smallest)
    _warn_of_order(moments, source)
    if method == "ema":
        batches = max((seen.seen for seen in moments.values()), default=0)
        log.warning("population statistics: a moving average over %d batches depends on the last "
                    "of them and on the old statistics; pooled takes as long and is exact", batches)


def warn_of_padding(source: Source) -> None:
    """Log that the inputs look padded, where no mask says which positions count."""
    if not source.empty:
        masks.warn_of_padding(source.example)


def _warn_of_order(moments: Mapping[str, Moments], source: Source) -> None:
    if source.labels.sorted and not source.mixed:
        log.warning("population statistics: the labels come sorted and the data is too large or "
                    "too irregular to be shuffled as a whole; batches of one class put the "
                    "variance off by up to 2x: shuffle it")
        return
    for name, seen in moments.items():
        if seen.disorder > _tolerated(seen.seen):
            log.warning("population statistics: the samples come sorted: the means of the batches "
                        "that %s saw vary %.0f times as much as those of mixed ones, which puts "
                        "the variance off: shuffle the data", name, seen.disorder)
            return


def _tolerated(batches: int) -> float:
    """What chance alone hardly ever reaches (chi-square over its degrees of freedom)."""
    return 1 + 10 / math.sqrt(max(1, batches - 1))
