"""The parameters and statistics that inserted BatchNorms start with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bnpass.ir.edits import NewBranch, NewNorm
from bnpass.passes.branches import drawn
from bnpass.passes.sites import InsertPlan, Site

Moments = Callable[[Sequence[Site]], dict[str, tuple[np.ndarray, np.ndarray]]]
"""Sites -> population mean and biased variance (each (C,)) of their values, by value name."""


def initialised(
    plan: InsertPlan,
    init: str,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    moments: Moments | None = None,
    seed: int = 0,
) -> InsertPlan:
    """The plan with its BatchNorms among the edits; for the arguments see :func:`new_norms`."""
    norms = new_norms(plan, init, epsilon=epsilon, momentum=momentum, moments=moments, seed=seed)
    return replace(plan, edits=replace(plan.edits, norms=tuple(norms)))


def new_norms(
    plan: InsertPlan,
    init: str,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    moments: Moments | None = None,
    seed: int = 0,
) -> list[NewNorm]:
    """The BatchNorms of a plan with their initial parameters.

    Args:
        plan: the plan.
        init: ``fresh`` (gamma 1, or 0 at the end of a residual branch where that is asked for,
            beta 0, mean 0, var 1), ``preserve`` (the same outputs in eval
            mode: gamma = sqrt(1 + eps), beta = the dropped bias) or ``calibrated`` (the same, with
            the population's statistics: gamma = sqrt(var + eps), beta = mean + bias).
        epsilon: added to the variance.
        momentum: torch's: the share of the new batch in the running statistics.
        moments: for ``calibrated``: measures the sites' values in the original network.
        seed: of the branches' weights; with an ``init`` that keeps the function their gamma is 0.
    """
    measured = moments(plan.sites) if init == "calibrated" and moments is not None else {}
    norms = []
    for site in plan.sites:
        n = site.channels
        ones, zeros = np.ones(n), np.zeros(n)
        scale, bias, mean, var = zeros if site.zero else ones, zeros, zeros, ones
        if init != "fresh":
            bias = site.constant
            if site.value in measured:
                total, var = measured[site.value]
                mean, bias = total - site.constant, total
            scale = np.sqrt(var + epsilon)
        norms.append(
            NewNorm(
                site.name,
                site.value,
                site.axis,
                site.rank,
                scale,
                bias,
                mean,
                var,
                epsilon,
                momentum,
                site.drops,
                site.readers,
                site.clones,
                _branches(site, init, seed),
            )
        )
    return norms


def _branches(site: Site, init: str, seed: int) -> tuple[NewBranch, ...]:
    """A site's branches: they count from the start, or add nothing where the function is kept."""
    scale = np.ones(site.channels) if init == "fresh" else np.zeros(site.channels)
    return tuple(
        NewBranch(branch, None if branch.shape is None else drawn(branch, seed), scale)
        for branch in site.branches
    )
