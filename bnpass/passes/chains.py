"""Chains of affine operators: BatchNorms and per-channel arithmetic, one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from bnpass.ir.affine import Map
from bnpass.ir.edits import Rewrite
from bnpass.ir.graph import Op
from bnpass.ir.operators import operator
from bnpass.passes.planner import Planner
from bnpass.rules import MapRefusedError
from bnpass.rules.maps import map_of, norm_maps


class Link(NamedTuple):
    """One operator of a chain: its data input, what it computes, what it had taken in by then."""

    op: Op
    data: int
    map: Map
    rewrite: Rewrite | None = None


class Chain:
    """Affine operators, each the only reader of the one before it.

    Attributes:
        links: the operators, in order.
        names: their names.
        norms: the BatchNormalizations among them.
        head: the operator that names the chain: its first BatchNorm, or its first operator.
        source: the value that the chain reads.
        result: the value that the chain makes.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = tuple(links)
        self.names = tuple([link.op.name for link in links])
        self.norms = [link for link in links if link.op.kind == "BatchNormalization"]
        self.head = (self.norms or links)[0].op
        self.source = links[0].op.inputs[links[0].data]
        self.result = links[-1].op.outputs[0]

    @cached_property
    def map(self) -> Map:
        """What all of them compute together."""
        total = self.links[0].map
        for link in self.links[1:]:
            total = link.map.after(total)
        return total


@dataclass(frozen=True)
class Found:
    """Chains in topological order, and the BatchNorms that are no maps with their reasons."""

    chains: list[Chain]
    refused: list[tuple[Op, str]]


def find_chains(planner: Planner, selected: Callable[[Op], bool]) -> Found:
    """All maximal chains of selected operators that are still there.

    A chain ends where another operator reads its value too, and where the product of its maps
    would vary along more than one axis.
    """
    found = Found([], [])
    taken: set[str] = set()
    candidates = [
        op
        for op in planner.graph.ops_in_order
        if operator(op.kind).affine and op.name not in planner.committed.removed and selected(op)
        and op.name not in planner.atoms
    ]
    links_of = _untouched_norms(candidates, planner)
    for op in candidates:
        if op.name in taken:
            continue
        link = links_of.get(op.name) or _link(op, planner, found)
        if link is None:
            continue
        links = [link]
        total = link.map
        while (follower := _next(links[-1], planner, selected)) is not None:
            after = follower.map.after(total)
            if len(after.axes) > 1 or not after.is_finite:
                break
            total = after
            links.append(follower)
        chain = Chain(links)
        taken.update(chain.names)
        found.chains.append(chain)
    return found


def _untouched_norms(ops: Iterable[Op], planner: Planner) -> dict[str, Link]:
    """The BatchNorms that have taken nothing in yet, their numbers made all at once."""
    norms = [
        op
        for op in ops
        if op.kind == "BatchNormalization" and op.name not in planner.committed.rewrites
    ]
    maps = norm_maps(norms, planner.context)
    return {op.name: Link(op, 0, maps[op.name]) for op in norms if op.name in maps}


def refreshed(chain: Chain, planner: Planner) -> Chain:
    """The chain with what its operators have taken in since it was found."""
    taken_in = [planner.committed.rewrites.get(name) for name in chain.names]
    if all(now is link.rewrite for now, link in zip(taken_in, chain.links, strict=True)):
        return chain
    links = [_link(link.op, planner) for link in chain.links]
    if any(link is None for link in links):
        raise MapRefusedError("what it has absorbed makes it no per-channel map", chain.head)
    return Chain([link for link in links if link is not None])


def relate(chain: Chain, count: int, planner: Planner, carried: Map | None = None) -> None:
    """Note what becomes of the values inside of a chain that is about to go.

    Behind one of the first ``count`` operators the value is from now on what the chain reads;
    behind a later one it is what the chain makes, but for a map that the result carries.
    """
    links = chain.links
    inner: Map | None = None
    for link, following in list(pairwise(links))[:count]:
        inner = link.map if inner is None else link.map.after(inner)
        for value in _between(link, following, planner):
            planner.committed.relations.move(value, later=inner)
    rest: Map | None = None
    for link, following in reversed(list(pairwise(links[count:]))):
        rest = following.map if rest is None else rest.after(following.map)
        for value in _between(link, following, planner):
            planner.committed.relations.move(value, now=rest, later=carried)


def _between(link: Link, following: Link, planner: Planner) -> list[str]:
    """The value that one operator hands to the next, under every name that it has had."""
    values = [following.op.inputs[following.data]]
    while values[-1] != link.op.outputs[0]:
        op = planner.graph.producer(values[-1])
        assert op is not None
        values.append(op.inputs[planner.committed.removed[op.name]])
    return values


def _link(op: Op, planner: Planner, found: Found | None = None) -> Link | None:
    if not operator(op.kind).affine:
        return None
    try:
        pair = map_of(op, planner.context)
    except MapRefusedError as refusal:
        if found is not None and op.kind == "BatchNormalization":
            found.refused.append((op, refusal.reason))
        return None
    if pair is None:
        return None
    data, m = pair
    rewrite = planner.committed.rewrites.get(op.name)
    if rewrite is not None and rewrite.input_map is not None:
        m = m.after(rewrite.input_map)
    return Link(op, data, m, rewrite)


def _next(link: Link, planner: Planner, selected: Callable[[Op], bool]) -> Link | None:
    value = link.op.outputs[0]
    uses = planner.committed.uses(value)
    if len(uses) != 1 or planner.graph.is_output(value) or uses[0].index < 0:
        return None
    op = uses[0].op
    while op.name in planner.committed.removed and len(planner.committed.uses(op.outputs[0])) == 1:
        if planner.graph.is_output(op.outputs[0]):
            return None
        uses = planner.committed.uses(op.outputs[0])
        op = uses[0].op
    if op.name in planner.committed.removed or op.name in planner.atoms or not selected(op):
        return None
    follower = _link(op, planner)
    if follower is None or follower.data != uses[0].index:
        return None
    return follower
