"""Weights that others read too are copied: which copies make a model too large."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnpass.ir.graph import Graph
from bnpass.passes.sites import InsertPlan, Site, Skip

SMALL = 1 << 16
"""Bytes by which any model may grow."""

Stored = Callable[[str], tuple[Hashable, int] | None]
"""(what holds a value's numbers, how many bytes they take); None where nothing stores it."""


@dataclass
class Room:
    """What copies of weights may take up in one model.

    Attributes:
        before: bytes of all tensors of the model as it was given.
        most: how many times as large as that it may become.
        taken: bytes by which it has grown already.
        small: bytes by which any model may grow.
        option: what allows more, as users write it.
    """

    before: int
    most: float
    taken: int = 0
    small: int = SMALL
    option: str = "--max-growth "

    @property
    def left(self) -> int:
        """Bytes that may still be added."""
        return max(self.small, int((self.most - 1) * self.before)) - self.taken

    def too_large(self, growth: Mapping[str, int]) -> dict[str, str]:
        """The causes for which there is no room, each with its reason.

        Args:
            growth: bytes by cause: the operator that needs a weight of its own.
        """
        left, total = self.left, sum(growth.values())
        if total <= left:
            return {}
        needed = math.ceil(10 * (1 + (self.taken + total) / max(self.before, 1))) / 10
        found = {}
        for name, nbytes in sorted(growth.items(), key=lambda pair: pair[1]):
            left -= nbytes
            if left < 0:
                found[name] = (
                    f"{name!r} would need a weight of its own, {_size(nbytes)} more, as others "
                    f"read the same one ({self.option}{needed:g} allows all such copies)"
                )
        return found


def without_growth(
    plan: InsertPlan, graph: Graph, room: Room, stored: Stored, readers: Mapping[Any, int]
) -> InsertPlan:
    """The plan without those sites whose maps would need copies that there is no room for.

    Layers of one site get one map; where these are all that read a weight it is not copied.

    Args:
        plan: the plan.
        graph: of which it is.
        room: what copies may take up.
        stored: of the constants that layers read.
        readers: how often what holds them is read at all.
    """
    sites, skipped = list(plan.sites), list(plan.skipped)
    while reasons := room.too_large(_copies(graph, sites, stored, readers)):
        skipped += [
            Skip(name, graph.ops[name].kind, f"a map at {reasons[site.name]}")
            for site in sites
            if site.name in reasons
            for name in site.nonlinearities
        ]
        sites = [site for site in sites if site.name not in reasons]
    if len(sites) == len(plan.sites):
        return plan
    return replace(plan, sites=sites, skipped=skipped)


def _copies(
    graph: Graph, sites: Sequence[Site], stored: Stored, readers: Mapping[Any, int]
) -> Counter[str]:
    """Bytes of the copies of constants that each site's map would need, by the site's name."""
    growth, sizes = Counter[str](), dict[Hashable, int]()
    users: dict[Hashable, list[tuple[str, int]]] = {}
    for site in sites:
        reads: Counter[Hashable] = Counter()
        for op in site.absorbers:
            for name in filter(None, graph.ops[op].inputs):
                held = stored(name)
                if held is not None:
                    sizes[held[0]] = held[1]
                    reads[held[0]] += 1
        for key, count in reads.items():
            users.setdefault(key, []).append((site.name, count))
    for key, pairs in users.items():
        if sum(count for _, count in pairs) == readers.get(key, 0):
            pairs = pairs[:-1]  # the last one takes the old one
        growth.update({site: sizes[key] for site, _ in pairs})
    return growth


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:.1f} KiB"
