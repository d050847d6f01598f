"""Population mean and variance of values of a network, for ``init="calibrated"``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from bnpass.errors import InputError
from bnpass.frontends.fx.inserting import place_of
from bnpass.frontends.fx.read import TracedModel
from bnpass.frontends.fx.tracing import mode
from bnpass.ir.affine import at_channel, infinite_channel
from bnpass.nn.calls import Feeder, device_of, takes_of
from bnpass.passes.sites import Site
from bnpass.statistics.moments import Moments
from bnpass.statistics.source import Source
from bnpass.statistics.torch_engine import moments_of

_BATCH = 256  # samples at a time: the network has no BatchNorm yet, so the size does not matter


class _Watcher(fx.Interpreter):
    def __init__(
        self, gm: fx.GraphModule, watched: dict[fx.Node, list[tuple[Moments, int]]]
    ) -> None:
        super().__init__(gm)
        self.watched = watched

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and take the moments of what it makes if they are wanted."""
        value = super().run_node(n)
        for pool, axis in self.watched.get(n, ()):
            pool.add(moments_of(value, axis))
        return value


def measure(
    gm: fx.GraphModule, reading: TracedModel, sites: Sequence[Site], data: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and biased variance, each (C,), of the values of sites, by value name.

    Args:
        gm: the network without the new norms; runs in eval mode.
        reading: its view.
        sites: what to measure.
        data: a loader of inputs or (inputs, labels), a Dataset, a tensor, an array.

    Raises:
        InputError: no data, or moments that are not finite.
    """
    pools = {site.value: Moments() for site in sites}
    watched: dict[fx.Node, list[tuple[Moments, int]]] = {}
    for site in sites:
        node = place_of(reading, site.value)
        assert node is not None
        watched.setdefault(node, []).append((pools[site.value], site.axis))
    source = Source(data, takes_of(gm))
    if source.empty:
        raise InputError("no data to take population statistics from", "the loader is empty")
    watcher = _Watcher(gm, watched)
    takes, feeder = source.takes, Feeder(gm, device_of(gm))
    with mode(gm, False), torch.no_grad():
        for call in source.batches(_BATCH):
            named = feeder(call).by_name(takes)
            watcher.run(*(named[slot.name] for slot in takes.slots if slot.name in named))
    return {value: _result(value, pool) for value, pool in pools.items()}


def _result(value: str, pool: Moments) -> tuple[np.ndarray, np.ndarray]:
    mean, var = pool.pooled
    if not (np.isfinite(mean).all() and np.isfinite(var).all()):
        at = at_channel(infinite_channel(mean + var))
        raise InputError(f"the statistics of {value!r} are not finite{at}", "check the data")
    return mean, var
