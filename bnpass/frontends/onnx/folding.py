"""A fold of a whole model: read, plan, work the new numbers out, and only then edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from bnpass.collector import collector_paused
from bnpass.frontends.onnx.apply import apply_edits
from bnpass.frontends.onnx.collapsing import (
    Collapsed,
    collapse_scopes,
    collapses,
    may_collapse,
)
from bnpass.frontends.onnx.functions import in_the_way, inline, inline_norms
from bnpass.frontends.onnx.growth import room_of
from bnpass.frontends.onnx.numbers import Calculation, ScopeNumbers
from bnpass.frontends.onnx.read import Reading, Scope, checked_opset, read
from bnpass.ir.correspondence import Correspondences
from bnpass.ir.graph import Graph, Op
from bnpass.ir.operators import operator
from bnpass.onnx_model.attributes import attribute, set_attributes
from bnpass.onnx_model.faults import blaming_the_model
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import Place, graphs
from bnpass.passes.fold import FoldEntry, FoldPlan, overflows, plan_fold
from bnpass.passes.growth import Room
from bnpass.passes.recurrent import joinable, plan_join
from bnpass.passes.select import selector

_AGAIN = 3  # further folds of what a fold has written; one was enough for all graphs seen


@dataclass(frozen=True)
class FoldOptions:
    """What a fold is asked for; the names are those of :func:`bnpass.fold`."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    leftover: str = "bn"
    training_mode: str = "refuse"
    freeze_inputs: bool = False
    max_growth: float = 4.0
    fold_norms: bool = False
    collapse: str = "bn"


@dataclass
class Folded:
    """A folded model and what was done.

    Attributes:
        edited: the new model.
        plan: entries of all graphs; names inside a nested body carry the way there.
        rounds: the plans with all edits, in the order in which they were carried out; by the way
            to the graph, which is empty for the main one. Each refers to the graphs as the round
            before has left them.
        inlined: names of the local functions that were inlined first.
        correspondences: which value of the new main graph stands for which old one.
        inside: the same of every body, by its place.
        grown: bytes of weights that had to be stored twice.
        unsettled: operators were written that a further fold may take in.
        original: what was folded, where that is not quite the model given: functions are written
            out, or BatchNormalizations in training mode taken for inference; else None.
    """

    edited: OnnxModel
    plan: FoldPlan
    correspondences: Correspondences = field(default_factory=Correspondences)
    grown: int = 0
    unsettled: bool = False
    original: onnx.ModelProto | None = None
    rounds: list[dict[str, FoldPlan]] = field(default_factory=list)
    inside: dict[Place, Correspondences] = field(default_factory=dict)
    inlined: tuple[str, ...] = ()

    @property
    def does_something(self) -> bool:
        """Whether the result is another model than the one given."""
        return self.original is not None or any(entry.how for entry in self.plan.entries)

    @property
    def model(self) -> onnx.ModelProto:
        """The new model's proto."""
        return self.edited.proto

    @property
    def pairs(self) -> dict[Place, Correspondences]:
        """Which new value stands for which old one, graph by graph."""
        return {**self.inside, (): self.correspondences}

    @property
    def changed(self) -> frozenset[str]:
        """Values of the main graph whose numbers differ from the original's."""
        return self.correspondences.changed

    @property
    def declared(self) -> tuple[str, ...]:
        """Names of what was folded only because the file is taken at its word for a shape."""
        return tuple(entry.node for entry in self.plan.declared)


def _stop_training(model: onnx.ModelProto) -> bool:
    """Let BatchNormalizations use their running statistics, but those whose new ones are read."""
    within = list(graphs(model.graph))
    norms = [n for g in within for n in g.node if n.op_type == "BatchNormalization"]
    read: set[str] = set()
    if any(len(norm.output) > 1 for norm in norms):
        read = {name for g in within for n in g.node for name in n.input}
        read.update(o.name for g in within for o in g.output)
    found = False
    for norm in norms:
        if read.isdisjoint(filter(None, norm.output[1:])):
            found |= bool(attribute(norm, "training_mode", 0))
            found |= len(norm.output) > 1
            set_attributes(norm, training_mode=None)
            del norm.output[1:]
    return found


def fold_model(
    model: onnx.ModelProto, options: FoldOptions = FoldOptions(), *, plan_only: bool = False
) -> Folded:
    """:func:`fold` of a copy; the model given, which holds its data, is unchanged."""
    given = OnnxModel.of(model)
    return plan(given, options) if plan_only else fold(given.copy(), options)


def fold(model: OnnxModel, options: FoldOptions = FoldOptions()) -> Folded:
    """Fold every map of a model that algebra allows to fold, in place.

    Args:
        model: the model; where it has a store, new weights of external tensors go there.
        options: what is asked for.

    Raises:
        InputError: the model is not valid ONNX, in a way that matters here.
    """
    with collector_paused(), blaming_the_model(model.as_given):
        given, functions = model.proto, _functions(model)
        stopped = _prepare(model, options)
        _inline_for_collapse(model, options)
        same = model.proto is given and not stopped
        ready = None if same or not collapses(model, options) else model.copy().proto
        collapsed = collapse_scopes(model, options)
        room = room_of(model.proto, options.max_growth)
        done = _with(collapsed, _settled(model, options, room, None if stopped else given))
        if collapsed.plan.collapsed:
            done = replace(done, original=ready)
        for _ in range(_AGAIN if collapsed.candidates else 0):  # a fold may clear the way
            collapsed = collapse_scopes(model, options)
            if not collapsed.plan.collapsed:
                break
            more = _with(collapsed, _settled(model, options, room, model.proto))
            done = _joined(done, more, collapsed.folds)
    return replace(done, inlined=tuple(sorted(functions - _functions(model))))


def _functions(model: OnnxModel) -> set[str]:
    return {f"{f.domain}::{f.name}" for f in model.proto.functions}


def _inline_for_collapse(model: OnnxModel, options: FoldOptions) -> None:
    """Write functions out where branches may collapse: what was collapsed then has one text."""
    if model.proto.functions and may_collapse(model, options):
        model.proto = onnx.inliner.inline_local_functions(model.proto)


def _settled(
    model: OnnxModel, options: FoldOptions, room: Room, given: onnx.ModelProto | None
) -> Folded:
    """Fold until nothing changes, so that folding twice is folding once."""
    done = _fold(model, options, room, given)
    for _ in range(_AGAIN):
        if not done.unsettled:
            break
        more = _fold(model, options, room, model.proto)
        if not any(entry.how for entry in more.plan.entries):
            break
        done = _joined(done, more)
    return done


def _joined(done: Folded, more: Folded, entries: Sequence[FoldEntry] = ()) -> Folded:
    """Two rounds as one; what the second one takes out are no maps of the model as given."""
    gone = {entry.node for entry in entries}
    kept = [entry for entry in done.plan.entries if entry.node not in gone]
    stated = tuple(sorted({*done.plan.stated, *more.plan.stated}))
    plan = replace(done.plan, entries=[*entries, *kept], stated=stated)
    found = done.correspondences.then(more.correspondences)
    return replace(done, plan=plan, correspondences=found, grown=done.grown + more.grown,
                   unsettled=more.unsettled, rounds=[*done.rounds, *more.rounds],
                   inside=then_inside(done.inside, more.inside))


def plan(model: OnnxModel, options: FoldOptions = FoldOptions()) -> Folded:
    """What :func:`fold` would do; its numbers are worked out, for only they tell what overflows.

    Raises:
        InputError: as :func:`fold`.
    """
    with collector_paused(), blaming_the_model(model.as_given):
        given = model.copy() if options.training_mode == "inference" else model.twin()
        _prepare(given, options)
        collapsed = Collapsed()
        if collapses(given, options):
            given = given.copy()
            collapsed = collapse_scopes(given, options)
        room = room_of(given.proto, options.max_growth)
        planned = _plan(given, options, room, keep=False)
    return Folded(model, _with(collapsed, Folded(model, planned.joined)).plan)


def _with(collapsed: Collapsed, done: Folded) -> Folded:
    """What was done, the branches that had become one operator before among it."""
    entries = [*collapsed.folds, *done.plan.entries]
    return replace(
        done,
        plan=replace(
            done.plan, entries=entries,
            stated=tuple(sorted({*collapsed.stated, *done.plan.stated})),
        ),
        correspondences=collapsed.correspondences.then(done.correspondences),
        inside=then_inside(collapsed.inside, done.inside),
    )


def then_inside(
    first: Mapping[Place, Correspondences], later: Mapping[Place, Correspondences]
) -> dict[Place, Correspondences]:
    """The correspondences of bodies after two edits, one behind the other."""
    none = Correspondences()
    return {at: first.get(at, none).then(later.get(at, none)) for at in {*first, *later}}


def _prepare(model: OnnxModel, options: FoldOptions) -> bool:
    """Make ready what is folded; whether BatchNormalizations were taken out of training mode."""
    checked_opset(model.proto)
    inlined = inline_norms(model.proto)
    if inlined is not model.proto:
        model.proto = inlined
    return options.training_mode == "inference" and _stop_training(model.proto)


@dataclass
class _Planned:
    """Plans of all graphs of a model, with their new numbers."""

    reading: Reading
    plans: list[FoldPlan]
    numbers: list[ScopeNumbers]
    grown: int

    @property
    def joined(self) -> FoldPlan:
        """The entries of all graphs, and the edits of the main one."""
        entries: list[FoldEntry] = []
        for plan, scope in zip(self.plans, self.reading.scopes, strict=True):
            entries += [_inside(entry, scope) for entry in plan.entries]
        return replace(self.plans[0], entries=entries)


def _fold(
    model: OnnxModel, options: FoldOptions, room: Room, given: onnx.ModelProto | None
) -> Folded:
    """One round: plan, then edit; ``given`` is the model as people know it, if it is still that."""
    planned = _plan(model, options, room)
    room.taken += planned.grown
    original = None if model.proto is given else model.copy().proto
    whole = planned.joined
    edited = zip(planned.reading.scopes, planned.plans, planned.numbers, strict=True)
    for scope, plan, numbers in reversed(list(edited)):
        settled = [scope.settled[e.node] for e in plan.entries if e.how == "constant"]
        apply_edits(planned.reading.model, scope, plan.edits, numbers, settled)
    paths = [scope.path for scope in planned.reading.scopes]
    rounds = [dict(zip(paths, planned.plans, strict=True))]
    found, joined = planned.plans[0].edits.correspondences, _join_recurrent(planned.reading)
    if joined is not None:
        found = found.then(joined.edits.correspondences)
        whole.entries.extend(joined.entries)
        rounds.append({"": joined})
    unsettled = joined is not None or any(_writes_operators(plan) for plan in planned.plans)
    scopes = zip(planned.reading.scopes, planned.plans, strict=True)
    inside = {s.place: plan.edits.correspondences for s, plan in scopes if s.place}
    return Folded(model, whole, found, planned.grown, unsettled, original, rounds, inside)


def _plan(
    model: OnnxModel, options: FoldOptions, room: Room, *, keep: bool = True
) -> _Planned:
    """Plans whose numbers all fit: what would overflow takes nothing in, nor what would grow."""
    avoid: dict[str, str] = {}
    while True:
        reading, plans = _planned(model, options, avoid)
        calculation = Calculation(reading, keep=keep)
        pairs = list(zip(reading.scopes, plans, strict=True))
        numbers = [calculation.numbers(scope, plan.edits) for scope, plan in reversed(pairs)]
        stopped = {op: overflows(op, at) for op, at in calculation.overflowed.items()}
        stopped = stopped or room.too_large(calculation.growth)
        if not stopped:
            break
        if stopped.keys() <= avoid.keys():
            raise RuntimeError(f"a plan that avoids nothing: {sorted(stopped)}")
        avoid |= stopped
    stated = reading.model.stated
    if stated:
        plans = _marked(reading, plans, options, avoid)
        plans[0] = replace(plans[0], stated=stated)
    return _Planned(reading, plans, numbers[::-1], calculation.growth.total())


def _marked(
    reading: Reading, plans: Sequence[FoldPlan], options: FoldOptions, avoid: Mapping[str, str]
) -> list[FoldPlan]:
    """The plans; what stays where the file's own word for shapes does not count is marked."""
    doubting = read(reading.model.doubting(), freeze_inputs=options.freeze_inputs)
    marked = []
    for plan, bare in zip(plans, _plans(doubting, options, avoid), strict=True):
        sure = {name for entry in bare.folded for name in entry.nodes}
        marked.append(replace(plan, entries=[
            e if sure.issuperset(e.nodes) or e not in plan.folded else replace(e, declared=True)
            for e in plan.entries
        ]))
    return marked


def _planned(
    model: OnnxModel, options: FoldOptions, avoid: Mapping[str, str]
) -> tuple[Reading, list[FoldPlan]]:
    """A model's views and plans, local functions inlined where more BatchNorms fold then."""
    reading = read(model, freeze_inputs=options.freeze_inputs)
    plans = _plans(reading, options, avoid)
    while model.proto.functions and (stays := _stays(reading, plans)):
        before = model.proto
        inlined = inline(before, in_the_way(reading, stays))
        if inlined is before:
            break
        model.proto = inlined
        deeper = read(model, freeze_inputs=options.freeze_inputs)
        better = _plans(deeper, options, avoid)
        if len(_stays(deeper, better)) >= len(stays):
            model.proto = before
            break
        reading, plans = deeper, better
    return reading, plans


def _plans(reading: Reading, options: FoldOptions, avoid: Mapping[str, str]) -> list[FoldPlan]:
    plans = []
    for scope in reading.scopes:
        plan = plan_fold(
            scope.graph,
            only=options.only,
            skip=options.skip,
            leftover=options.leftover,
            avoid=avoid,
            fold_norms=options.fold_norms,
        )
        plans.append(replace(plan, entries=[*_evaluated(scope, options), *plan.entries]))
    return plans


def _evaluated(scope: Scope, options: FoldOptions) -> list[FoldEntry]:
    """BatchNormalizations of constants: what they compute is one."""
    wanted = selector(options.only, options.skip)
    return [
        FoldEntry(name, node.op_type, (name,), "constant")
        for name, node in scope.settled.items()
        if wanted(Op(name, node.op_type, [], []))
    ]


def _stays(reading: Reading, plans: Sequence[FoldPlan]) -> list[tuple[Graph, str]]:
    """(graph, operator) of everything that a plan leaves."""
    pairs = zip(reading.scopes, plans, strict=True)
    return [(scope.graph, entry.node) for scope, plan in pairs for entry in plan.refused]


def _writes_operators(plan: FoldPlan) -> bool:
    """Whether a fold puts operators into the graph: an Add behind a MatMul, a leftover."""
    shifts = (
        any(m is not None and m.has_shift for m in (r.input_map, r.output_map))
        for r in plan.edits.rewrites
        if operator(r.op.kind).bare_product
    )
    return bool(plan.edits.leftovers) or any(e.how == "merged" for e in plan.entries) or any(shifts)


def _join_recurrent(reading: Reading) -> FoldPlan | None:
    """The inverse of the insertion's split, on the model as a fold has left it.

    Only where a BatchNorm has left between the layer and what makes its input: a MatMul that the
    model has in front of a layer for itself is none of the fold's business. None where there is
    nothing to join.
    """
    if not any(operator(op.kind).recurrent for op in reading.main.graph.ops.values()):
        return None
    but = set(joinable(reading.main.graph))
    folded = read(reading.model)
    while (plan := plan_join(folded.main.graph, but)).entries:
        calculation = Calculation(folded)
        numbers = calculation.numbers(folded.main, plan.edits)
        if not calculation.overflowed:
            apply_edits(folded.model, folded.main, plan.edits, numbers)
            return plan
        but.update(calculation.overflowed)
    return None


def _inside(entry: FoldEntry, scope: Scope) -> FoldEntry:
    return replace(entry, node=scope.path + entry.node) if scope.path else entry
