"""Weights that others read too are copied: which copies make a model too large."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from bnpass.frontends.onnx.read import Reading
from bnpass.onnx_model.messages import np_dtype
from bnpass.onnx_model.storage import external
from bnpass.passes.sites import InsertPlan, Site, Skip

SMALL = 1 << 16
"""Bytes by which any model may grow."""


@dataclass
class Room:
    """What copies of weights may take up in one model.

    Attributes:
        before: bytes of all tensors of the model as it was given.
        most: how many times as large as that it may become.
        taken: bytes by which it has grown already.
    """

    before: int
    most: float
    taken: int = 0

    @classmethod
    def of(cls, model: onnx.ModelProto, most: float) -> Room:
        """Of a model that has not grown yet."""
        return cls(sum(external.nbytes(t) or 0 for t in external.tensors(model)), most)

    def too_large(self, growth: Mapping[str, int]) -> dict[str, str]:
        """The causes for which there is no room, each with its reason.

        Args:
            growth: bytes by cause: the operator that needs a weight of its own.
        """
        left = max(SMALL, int((self.most - 1) * self.before)) - self.taken
        total = sum(growth.values())
        if total <= left:
            return {}
        needed = math.ceil(10 * (1 + (self.taken + total) / max(self.before, 1))) / 10
        found = {}
        for name, nbytes in sorted(growth.items(), key=lambda pair: pair[1]):
            left -= nbytes
            if left < 0:
                found[name] = (
                    f"{name!r} would need a weight of its own, {_size(nbytes)} more in the file, "
                    f"as others read the same one (--max-growth {needed:g} allows all such copies)"
                )
        return found


def without_growth(reading: Reading, plan: InsertPlan, most: float) -> InsertPlan:
    """The plan without those sites whose maps would need copies that there is no room for.

    Layers of one site get one map; where these are all that read a weight it is not copied.
    """
    room, ops = Room.of(reading.model.proto, most), reading.main.graph.ops
    sites, skipped = list(plan.sites), list(plan.skipped)
    while reasons := room.too_large(_copies(reading, sites)):  # what goes leaves readers behind
        skipped += [
            Skip(name, ops[name].kind, f"a map at {reasons[site.name]}")
            for site in sites
            if site.name in reasons
            for name in site.nonlinearities
        ]
        sites = [site for site in sites if site.name not in reasons]
    return replace(plan, sites=sites, skipped=skipped)


def _copies(reading: Reading, sites: Sequence[Site]) -> Counter[str]:
    """Bytes of the copies of constants that each site's map would need, by the site's name."""
    scope, growth = reading.main, Counter[str]()
    users: dict[str, list[tuple[str, int]]] = {}
    for site in sites:
        reads = Counter(i for op in site.absorbers for i in scope.graph.ops[op].inputs if i)
        for name, count in reads.items():
            if name in scope.initializers and scope.graph.constant(name) is not None:
                users.setdefault(name, []).append((site.name, count))
    for name, pairs in users.items():
        if sum(count for _, count in pairs) == scope.readers[name]:
            pairs = pairs[:-1]  # the last one takes the old one
        constant = scope.graph.constants[name]
        nbytes = math.prod(constant.shape) * np_dtype(constant.dtype).itemsize if pairs else 0
        growth.update({site: nbytes for site, _ in pairs})
    return growth


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:.1f} KiB"
