"""Fold: every per-channel affine map goes into the weights around it, where that is exact.

1. backward: into the operators whose outputs it is applied to;
2. forward: into all operators that read its result;
3. split: the scale forward and the shift backward, or the other way round;
4. a BatchNorm only: backward or split, into the last constants of a composite;
5. else a chain of several operators becomes one, with the reason why it stays.

The constants of a composite (``bnpass.passes.composites``) neither leave nor join a chain.

Source: arXiv:1502.03167, Algorithm 2 (the inference transform) and section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from bnpass.ir.affine import Map, at_channel
from bnpass.ir.edits import GraphEdits, Leftover
from bnpass.ir.graph import Graph, Op, Use
from bnpass.ir.operators import operator
from bnpass.passes.atoms import find_atoms
from bnpass.passes.chains import Chain, find_chains, refreshed, relate
from bnpass.passes.cleanup import drop_inverse_pairs, keep_adds
from bnpass.passes.planner import Planner
from bnpass.passes.propagation import Propagation
from bnpass.passes.select import selector
from bnpass.report.plans import shown_fold
from bnpass.report.shown import Shown
from bnpass.report.tables import Table
from bnpass.rules import MapRefusedError

_ROUNDS = 4  # a fold can clear the way for another; more rounds were never needed
_SPELT_OUT = 3  # arithmetic operators from which on one BatchNormalization is the shorter text


@dataclass(frozen=True)
class FoldEntry:
    """What became of one chain of affine operators.

    Attributes:
        node: the operator that names the chain.
        kind: its operator type.
        nodes: all operators of the chain.
        how: ``backward``, ``forward``, ``split``, ``merged`` (several became one), ``constant``
            (of constants: it is evaluated); empty: it stays.
        into: the operators that took it in.
        reason: why it stays, or why it was only merged.
        declared: it leaves only because the file's own word counts for a shape that nothing else
            tells.
    """

    node: str
    kind: str
    nodes: tuple[str, ...]
    how: str
    into: tuple[str, ...] = ()
    reason: str = ""
    declared: bool = False


@dataclass(frozen=True, repr=False)
class FoldPlan(Shown):
    """What a fold will do to one graph, and why not more.

    Attributes:
        entries: what leaves, and what stays of what people expect to leave.
        edits: what is to be done.
        arithmetic: single Adds, Muls and the like that stay, as they do in most networks.
        spared: constants of composites, which are left alone.
        stated: values of whose shapes the file's own word was all that there is.
    """

    entries: list[FoldEntry] = field(default_factory=list)
    edits: GraphEdits = field(default_factory=GraphEdits)
    arithmetic: list[FoldEntry] = field(default_factory=list)
    spared: list[FoldEntry] = field(default_factory=list)
    stated: tuple[str, ...] = ()

    @property
    def folded(self) -> list[FoldEntry]:
        """Entries that leave the graph."""
        left = ("backward", "forward", "split", "collapsed", "constant")
        return [e for e in self.entries if e.how in left]

    @property
    def refused(self) -> list[FoldEntry]:
        """Entries that stay, as they are or merged."""
        return [e for e in self.entries if e.how in ("", "merged")]

    @property
    def declared(self) -> list[FoldEntry]:
        """Entries that leave only because the file is taken at its word for a shape."""
        return [e for e in self.folded if e.declared]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "folds": [asdict(e) for e in self.entries],
            "spared": [asdict(e) for e in self.spared],
            "stated_shapes": list(self.stated),
        }

    def shown(self) -> list[Table | str]:
        """What the command prints of it."""
        return shown_fold(self)


def plan_fold(
    graph: Graph,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    leftover: str = "bn",
    avoid: Mapping[str, str] = MappingProxyType({}),
    fold_norms: bool = False,
) -> FoldPlan:
    """Plan the fold of every affine chain of a graph.

    Args:
        graph: the view.
        only, skip: glob patterns on operator names.
        leftover: what a chain becomes that has to stay: ``bn`` or ``affine`` (a Mul and an Add).
        avoid: operators that must not take anything in, and why: their results would overflow.
        fold_norms: gamma and beta of norms that are spelt out may leave, too.
    """
    planner = Planner(graph, find_atoms(graph, fold_norms=fold_norms))
    selected = selector(only, skip)
    entries: list[FoldEntry] = []
    reasons: dict[str, str] = {}
    chains: list[Chain] = []
    for _ in range(_ROUNDS):
        found = find_chains(planner, selected)
        unread = _drop_unread(found.chains, planner)
        if unread:  # what they read may now be longer chains
            entries += unread
            found = find_chains(planner, selected)
        chains, reasons = [], {op.name: reason for op, reason in found.refused}
        refused = found.refused
        planner.joinable = {
            c.result: (c.names, partial(_current, c, planner)) for c in found.chains
        }
        by_result = {c.result: c for c in found.chains}
        whole = True
        # BatchNorms first: the arithmetic in front may have to take in what no layer there does
        for chain in sorted(found.chains, key=lambda c: not c.norms):
            if chain.result not in planner.joinable:
                continue  # it went along with another one
            entry, joined = _fold(chain, planner, avoid)
            if entry.how:
                entries.append(entry)
                whole &= len(entry.nodes) == len(chain.links)
                del planner.joinable[chain.result]
                for result in joined:
                    del planner.joinable[result]
                    entries.append(_along(entry, by_result[result], planner))
            else:
                chains.append(chain)
                reasons[chain.head.name] = entry.reason
        if (not chains and whole) or len(chains) == len(found.chains):
            break
    entries += [FoldEntry(op.name, op.kind, (op.name,), "", (), r) for op, r in refused]
    leftovers = [_leave(c, reasons[c.head.name], planner, leftover, avoid) for c in chains]
    entries += [entry for entry, _ in leftovers if entry is not None]
    arithmetic = [
        FoldEntry(c.head.name, c.head.kind, c.names, "", (), reasons[c.head.name])
        for c, (entry, _) in zip(chains, leftovers, strict=True)
        if entry is None
    ]
    order = graph.order
    entries.sort(key=lambda e: order[e.node])
    written = tuple(left for _, left in leftovers if left is not None)
    return FoldPlan(entries, _edits(planner, written, avoid), arithmetic, _spared(planner))


def _edits(
    planner: Planner, leftovers: tuple[Leftover, ...], avoid: Mapping[str, str]
) -> GraphEdits:
    """All edits of a plan, and what becomes of every value."""
    graph, committed = planner.graph, planner.committed
    relations = committed.relations
    rewrites = tuple(committed.rewrites.values())
    edits = GraphEdits(rewrites, committed.removals, leftovers)
    edits = keep_adds(edits, graph, relations, avoid)
    edits = drop_inverse_pairs(edits, graph, relations)
    stay = {left.ops[-1].name for left in leftovers}
    removed = [(op, data) for op, data in edits.removed if op.name not in stay]
    return replace(edits, correspondences=relations.correspondences(graph, removed))


def _spared(planner: Planner) -> list[FoldEntry]:
    """What would be a chain of its own, were it not part of a composite."""
    atoms, taken_in = planner.atoms, planner.committed.rewrites
    return [
        FoldEntry(op.name, op.kind, (op.name,), "", (), atoms.reason(op))
        for op in planner.graph.ops_in_order
        if op.name in atoms and op.name not in taken_in and _holds_a_constant(op, planner.graph)
    ]


def _holds_a_constant(op: Op, graph: Graph) -> bool:
    fixed = [name for name in op.inputs if graph.constant(name) is not None]
    return operator(op.kind).affine and len(fixed) == 1


def overflows(op: str, channel: int | None = None) -> str:
    """The reason why an operator must not take anything in that its weights' type cannot hold."""
    return f"the new weights of {op!r} would not be finite numbers{at_channel(channel)}"


# --- one chain


def _current(chain: Chain, planner: Planner) -> Map:
    return refreshed(chain, planner).map


def _along(entry: FoldEntry, chain: Chain, planner: Planner) -> FoldEntry:
    """The entry of a chain that went along with another one."""
    chain = refreshed(chain, planner)
    relate(chain, len(chain.links), planner)
    _remove(chain, planner)
    return FoldEntry(chain.head.name, chain.head.kind, chain.names, entry.how, entry.into)


_Attempt = Callable[[Chain, Planner], list[Propagation]]
"""Tries one way for a chain to leave; MapRefusedError where it does not lead anywhere."""


class _Way(NamedTuple):
    """One way for a chain to leave, tried and found possible."""

    how: str
    propagations: list[Propagation]
    into: tuple[str, ...]
    adds: int


def _fold(
    chain: Chain, planner: Planner, avoid: Mapping[str, str]
) -> tuple[FoldEntry, frozenset[str]]:
    """Try the ways of this file's head in turn; also the results of chains that go along."""
    names, head = chain.names, chain.head
    try:
        chain = refreshed(chain, planner)
    except MapRefusedError as refusal:
        return FoldEntry(head.name, head.kind, names, "", (), refusal.reason), frozenset()
    if chain.map.is_identity:
        _commit(chain, [], planner)
        return FoldEntry(head.name, head.kind, names, "backward"), frozenset()
    way, reasons = _best_way(chain, planner, avoid)
    if way is None and chain.norms and head is not chain.links[0].op:
        way, tail = _tail_way(chain, planner, avoid)
        chain, names = (tail, tail.names) if way is not None else (chain, names)
    if way is None and not chain.norms:
        way, part = _part_way(chain, planner, avoid)
        if way is not None:
            chain, names, head = part, part.names, part.head
    if way is None:
        return FoldEntry(head.name, head.kind, names, "", (), "; ".join(reasons[:2])), frozenset()
    _commit(chain, way.propagations, planner)
    joined = frozenset().union(*(propagation.joined for propagation in way.propagations))
    return FoldEntry(head.name, head.kind, names, way.how, way.into), joined


def _tail_way(
    chain: Chain, planner: Planner, avoid: Mapping[str, str]
) -> tuple[_Way | None, Chain]:
    """From its first BatchNorm on: the Add in front may take in what no layer there does."""
    place = chain.links.index(chain.norms[0])
    tail = Chain(chain.links[place:])
    way, _ = _best_way(tail, planner, avoid)
    if way is not None and set(way.into) <= set(Chain(chain.links[:place]).names):
        return None, tail  # the chain would only change its shape
    return way, tail


def _part_way(
    chain: Chain, planner: Planner, avoid: Mapping[str, str]
) -> tuple[_Way | None, Chain]:
    """The longest part that leaves at no cost: a Mul where the Add beside it stays.

    Behind concatenated MatMuls the two together would cost an Add for each of these.
    """
    for length in range(len(chain.links) - 1, 0, -1):
        for start in range(len(chain.links) - length + 1):
            part = Chain(chain.links[start : start + length])
            way, _ = _best_way(part, planner, avoid)
            if way is not None and not way.adds and not set(way.into) <= set(chain.names):
                return way, part
    return None, chain


def _best_way(
    chain: Chain, planner: Planner, avoid: Mapping[str, str]
) -> tuple[_Way | None, list[str]]:
    """A way that leaves composites alone; for a BatchNorm else one into their last constants."""
    way, reasons = _first_way(_WAYS, chain, planner, avoid)
    if way is None and chain.norms and planner.atoms:
        with planner.atoms.opened():
            way, _ = _first_way([w for w in _WAYS if w[0] != "forward"], chain, planner, avoid)
    return way, reasons


def _first_way(
    ways: Sequence[tuple[str, _Attempt]], chain: Chain, planner: Planner, avoid: Mapping[str, str]
) -> tuple[_Way | None, list[str]]:
    """The first way that costs nothing, else the first that costs an Add behind a MatMul."""
    costly: _Way | None = None
    reasons = []
    for how, attempt in ways:
        try:
            propagations = attempt(chain, planner)
            into = _takers(propagations)
            adds = _check_worth(chain, propagations, into, planner, avoid)
            way = _Way(how, propagations, into, adds)
        except MapRefusedError as refusal:
            reasons.append(f"{how}: {refusal.reason}")
            continue
        if not way.adds:
            return way, reasons
        costly = costly or way
    return costly, reasons


def _takers(propagations: list[Propagation]) -> tuple[str, ...]:
    """Names of the operators that take something in."""
    if len(propagations) == 1:
        return propagations[0].into
    return tuple(dict.fromkeys(name for propagation in propagations for name in propagation.into))


def _back(chain: Chain, m: Map, planner: Planner) -> Propagation:
    first = chain.links[0]
    return planner.backward(chain.source, m, Use(first.op, first.data))


def _scale_on_shift_back(chain: Chain, planner: Planner) -> list[Propagation]:
    """s*x + t = f*(a*x + b), f > 0 forward; a is 1, or 0 for a channel that is constant."""
    m = chain.map
    if not m.has_shift or not m.has_scale:
        raise MapRefusedError("there is nothing to split")
    if not m.is_monotone:
        raise MapRefusedError("a negative scale cannot be split off")
    zero = m.scale == 0
    factor = np.where(zero, 1.0, m.scale)
    rest = Map(np.where(zero, 0.0, 1.0), m.shift / factor)
    return [
        _back(chain, rest, planner),
        planner.forward(chain.result, Map(factor, np.zeros_like(factor))),
    ]


def _scale_back_shift_on(chain: Chain, planner: Planner) -> list[Propagation]:
    m = chain.map
    if not m.has_shift or not m.has_scale:
        raise MapRefusedError("there is nothing to split")
    return [
        _back(chain, m.scale_only(), planner),
        planner.forward(chain.result, m.shift_only()),
    ]


def _check_worth(
    chain: Chain,
    propagations: list[Propagation],
    into: tuple[str, ...],
    planner: Planner,
    avoid: Mapping[str, str],
) -> int:
    """How many new Adds the propagations cost."""
    gone = set(chain.names)
    for propagation in propagations:
        gone.update(*(planner.joinable[value][0] for value in propagation.joined))
    if not all(gone.isdisjoint(propagation.crossed) for propagation in propagations):
        raise MapRefusedError("it would be absorbed by an operator that is itself folded away")
    adds = sum(not planner.context.shifted(op) for op in _shifted(propagations))
    if not chain.norms and adds >= len(chain.links):
        raise MapRefusedError("nothing would be saved: it would become another operator elsewhere")
    stopped = avoid.keys() & set(into)
    if stopped:
        raise MapRefusedError(avoid[min(stopped)])
    return adds


def _shifted(propagations: list[Propagation]) -> set[Op]:
    """Operators without a bias of their own that get a shift."""
    taken = [pair for t in propagations for pair in (*t.input_maps, *t.output_maps)]
    return {op for op, m in taken if operator(op.kind).bare_product and m.has_shift}


def _commit(chain: Chain, propagations: list[Propagation], planner: Planner) -> None:
    for propagation in propagations:
        planner.committed.take(propagation, chain.names)
    backward = any(chain.source in p.asked for p in propagations)
    carried = [p.carried[chain.result] for p in propagations if chain.result in p.carried]
    relate(chain, 0 if backward else len(chain.links), planner, carried[0] if carried else None)
    _remove(chain, planner)


def _drop_unread(chains: Sequence[Chain], planner: Planner) -> list[FoldEntry]:
    """Chains whose results nobody reads go first: they would keep others from leaving."""
    entries = []
    for chain in reversed(chains):
        if not planner.context.unread(chain.result):
            continue
        _remove(chain, planner)
        planner.committed.relations.gone.update(link.op.outputs[0] for link in chain.links)
        planner.committed.unread.update(chain.names)
        entries.append(FoldEntry(chain.head.name, chain.head.kind, chain.names, "forward"))
    return entries


def _remove(chain: Chain, planner: Planner, but: Op | None = None) -> None:
    for link in chain.links:
        if link.op is not but:
            planner.committed.remove(link.op, link.data)


def _backward(chain: Chain, planner: Planner) -> list[Propagation]:
    return [_back(chain, chain.map, planner)]


def _forward(chain: Chain, planner: Planner) -> list[Propagation]:
    return [planner.forward(chain.result, chain.map)]


_WAYS: tuple[tuple[str, _Attempt], ...] = (
    ("backward", _backward),
    ("forward", _forward),
    ("split", _scale_on_shift_back),
    ("split", _scale_back_shift_on),
)


# --- what stays


def _leave(
    chain: Chain, reason: str, planner: Planner, style: str, avoid: Mapping[str, str]
) -> tuple[FoldEntry | None, Leftover | None]:
    """A chain that stays becomes one operator where that is shorter, and its numbers are finite."""
    head, names = chain.head, chain.names
    try:
        chain = refreshed(chain, planner)
    except MapRefusedError:
        return FoldEntry(head.name, head.kind, names, "", (), reason), None
    overflows = not avoid.keys().isdisjoint(names)
    if chain.norms and (style == "bn" or overflows):
        along_others = any(axis != 1 for link in chain.links for axis in link.map.axes)
        along_others |= planner.context.constant(chain.norms[0].op.inputs[1]) is None
        if len(chain.links) == 1 or along_others or overflows:
            return FoldEntry(head.name, head.kind, names, "", (), reason), None
        if not _moved_product(chain.source, planner):
            _merge_into_norm(chain, planner)
            return FoldEntry(head.name, head.kind, names, "merged", (head.name,), reason), None
        style = "affine"
    m = chain.map
    written = chain.norms or (len(names) >= _SPELT_OUT and m.axes == (1,))
    if not written or overflows:
        return None, None
    relate(chain, len(chain.links), planner)
    _remove(chain, planner)
    if style == "bn" and not chain.norms and _moved_product(chain.source, planner):
        style = "affine"
    left = Leftover(tuple(link.op for link in chain.links), m, 1, style)
    return FoldEntry(head.name, head.kind, names, "merged", (head.name,), reason), left


def _moved_product(value: str, planner: Planner) -> bool:
    """Whether a value is a product that was transposed or reshaped.

    onnxruntime fuses a BatchNormalization behind it into the MatMul, along the wrong axis.
    """
    op = planner.graph.producer(value)
    moved = False
    while op is not None and op.kind in ("Transpose", "Reshape"):
        moved, op = True, planner.graph.producer(op.inputs[0])
    return moved and op is not None and op.kind == "MatMul"


def _merge_into_norm(chain: Chain, planner: Planner) -> None:
    """The chain's first BatchNorm takes its neighbours in: it keeps its own statistics."""
    norm = chain.norms[0]
    place = chain.links.index(norm)
    propagation = Propagation()
    if place:
        propagation.input_maps.append((norm.op, Chain(chain.links[:place]).map))
    if place + 1 < len(chain.links):
        after = Chain(chain.links[place + 1 :]).map
        n = planner.context.current(norm.op, 1).size
        vectors = after.vectors(1, n)
        assert vectors is not None
        propagation.constants += [
            (norm.op, 1, Map(vectors[0], np.zeros(n))),
            (norm.op, 2, Map(*vectors)),
        ]
    relate(chain, place, planner)
    planner.committed.take(propagation, tuple(n for n in chain.names if n != norm.op.name))
    _remove(chain, planner, but=norm.op)
