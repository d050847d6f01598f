"""Population mean and variance of values of a network, for ``init="calibrated"``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from bnpass.errors import InputError
from bnpass.frontends.fx.apply import place_of
from bnpass.frontends.fx.read import TracedModel
from bnpass.frontends.fx.tracing import mode
from bnpass.passes.sites import Site

_BATCH = 256  # samples at a time: the network has no BatchNorm yet, so the size does not matter


class _Pool:
    """Moments over everything seen, in float64 (law of total variance)."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean, self.total = np.zeros(channels), np.zeros(channels)

    def add(self, x: torch.Tensor, axis: int) -> None:
        flat = x.detach().double().movedim(axis, 0).flatten(1)
        n, mean = flat.shape[1], flat.mean(1).cpu().numpy()
        total = ((flat - flat.mean(1, keepdim=True)) ** 2).sum(1).cpu().numpy()
        delta, count = mean - self.mean, self.count + n
        self.total += total + delta**2 * self.count * n / count
        self.mean = self.mean + delta * n / count
        self.count = count


class _Watcher(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, watched: dict[fx.Node, list[tuple[_Pool, int]]]) -> None:
        super().__init__(gm)
        self.watched = watched

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and take the moments of what it makes if they are wanted."""
        value = super().run_node(n)
        for pool, axis in self.watched.get(n, ()):
            pool.add(value, axis)
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
    from bnpass.training.grouping import Source

    pools = {site.value: _Pool(site.channels) for site in sites}
    watched: dict[fx.Node, list[tuple[_Pool, int]]] = {}
    for site in sites:
        node = place_of(reading, site.value)
        assert node is not None
        watched.setdefault(node, []).append((pools[site.value], site.axis))
    arity = sum(n.op == "placeholder" and not n.args for n in gm.graph.nodes)
    source = Source(data, arity)
    if source.empty:
        raise InputError("no data to take population statistics from", "the loader is empty")
    watcher = _Watcher(gm, watched)
    device = next((p.device for p in gm.parameters()), torch.device("cpu"))
    with mode(gm, False), torch.no_grad():
        for inputs in source.batches(_BATCH):
            watcher.run(*(x.to(device) for x in inputs))
    return {value: _result(value, pool) for value, pool in pools.items()}


def _result(value: str, pool: _Pool) -> tuple[np.ndarray, np.ndarray]:
    if not np.isfinite(pool.mean).all() or not np.isfinite(pool.total).all():
        raise InputError(f"the statistics of {value!r} are not finite", "check the data")
    return pool.mean, pool.total / pool.count
