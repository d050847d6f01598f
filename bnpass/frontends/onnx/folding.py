"""A fold of a whole ModelProto: read, plan, apply. The model given is never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from bnpass.collector import collector_paused
from bnpass.errors import RefusedError
from bnpass.frontends.onnx.apply import apply_fold
from bnpass.frontends.onnx.editor import OverflowedError
from bnpass.frontends.onnx.functions import in_the_way, inline, inline_norms
from bnpass.frontends.onnx.read import (
    Reading,
    Scope,
    checked_opset,
    copied,
    read,
)
from bnpass.ir.correspondence import Correspondences
from bnpass.ir.graph import RECURRENT, Graph
from bnpass.onnx_model.attributes import set_attributes
from bnpass.onnx_model.faults import blaming_the_model
from bnpass.onnx_model.scopes import graphs
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.storage.patching import Discarded, PatchedData, Store
from bnpass.passes.fold import FoldEntry, FoldPlan, plan_fold

_SMALL = 1 << 20  # bytes by which any model may grow

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


@dataclass
class Folded:
    """A folded model and what was done.

    Attributes:
        model: the new model.
        plan: entries of all graphs; names inside a nested body carry the way there.
        correspondences: which value of the new main graph stands for which old one.
        grown: bytes of weights that had to be stored twice.
        unsettled: operators were written that a further fold may take in.
        avoid: operators that must not take anything in, as their weights would overflow.
    """

    model: onnx.ModelProto
    plan: FoldPlan
    correspondences: Correspondences = field(default_factory=Correspondences)
    grown: int = 0
    unsettled: bool = False
    avoid: frozenset[str] = frozenset()

    @property
    def changed(self) -> frozenset[str]:
        """Values of the main graph whose numbers differ from the original's."""
        return self.correspondences.changed


def _prepared(model: onnx.ModelProto, options: FoldOptions, own: bool) -> onnx.ModelProto:
    checked_opset(model)
    copy = inline_norms(model)
    copy = copied(model) if copy is model and not own else copy
    if options.training_mode == "inference":
        _stop_training(copy)
    return copy


def _stop_training(model: onnx.ModelProto) -> None:
    """Let BatchNormalizations use their running statistics, but those whose new ones are read."""
    within = list(graphs(model.graph))
    norms = [n for g in within for n in g.node if n.op_type == "BatchNormalization"]
    read: set[str] = set()
    if any(len(norm.output) > 1 for norm in norms):
        read = {name for g in within for n in g.node for name in n.input}
        read.update(o.name for g in within for o in g.output)
    for norm in norms:
        if read.isdisjoint(filter(None, norm.output[1:])):
            set_attributes(norm, training_mode=None)
            del norm.output[1:]


def plan_folds(reading: Reading, options: FoldOptions, avoid: frozenset[str]) -> list[FoldPlan]:
    """A plan for every graph of a model."""
    return [
        plan_fold(
            scope.graph,
            only=options.only,
            skip=options.skip,
            leftover=options.leftover,
            avoid=avoid,
            fold_norms=options.fold_norms,
        )
        for scope in reading.scopes
    ]


def fold_model(
    model: onnx.ModelProto,
    options: FoldOptions = FoldOptions(),
    *,
    folder: Path | None = None,
    plan_only: bool = False,
    store: Store | None = None,
    fresh: Callable[[], onnx.ModelProto] | None = None,
) -> Folded:
    """Fold every map of a model that algebra allows to fold.

    Args:
        model: the model; unchanged, unless ``fresh`` can make it again.
        options: what is asked for.
        folder: where its external data lies.
        plan_only: plan, and return the model as it is.
        store: takes new numbers of external tensors; without it they come into the model.
        fresh: makes the model anew; given, ``model`` itself is edited and no copy is made.

    Raises:
        RefusedError: cloned weights would make the model larger than ``max_growth`` times.
        InputError: the model is not valid ONNX, in a way that matters here.
    """
    with collector_paused(), blaming_the_model(lambda: fresh() if fresh else model):
        done = _fold_model(model, options, folder, plan_only, store, fresh)
        return done if plan_only else _settled(done, options, folder, store)


def _settled(
    done: Folded, options: FoldOptions, folder: Path | None, store: Store | None
) -> Folded:
    """Fold what a first fold has written anew: so that folding twice is folding once."""
    for _ in range(_AGAIN):
        if not done.unsettled:
            break
        avoid: frozenset[str] = frozenset()
        if isinstance(store, PatchedData):  # what is patched already cannot be taken back
            avoid = _fold_model(done.model, options, folder, True, store, None).avoid
        more = _fold_model(done.model, options, folder, False, store, None, avoid)
        if not any(entry.how for entry in more.plan.entries):
            break
        done = Folded(
            more.model,
            done.plan,
            done.correspondences.then(more.correspondences),
            done.grown + more.grown,
            more.unsettled,
        )
    return done


def _fold_model(
    model: onnx.ModelProto,
    options: FoldOptions,
    folder: Path | None,
    plan_only: bool,
    store: Store | None,
    fresh: Callable[[], onnx.ModelProto] | None,
    avoid: frozenset[str] = frozenset(),
) -> Folded:
    if plan_only:  # carried out on a copy all the same: only the numbers tell what overflows
        store = Discarded(store if isinstance(store, PatchedData) else None)
        fresh = None
    while True:
        copy = _prepared(model, options, own=fresh is not None)
        reading, plans = _planned(copy, options, folder, store, avoid)
        whole = _joined(plans, reading)
        try:
            grown = sum(
                apply_fold(reading, scope, plan.edits)
                for scope, plan in reversed(list(zip(reading.scopes, plans, strict=True)))
            )
            _check_growth(reading.model, grown, options.max_growth)
            joined = None if plan_only else _join_recurrent(reading, whole, avoid)
        except OverflowedError as error:
            if error.op in avoid:
                raise  # a plan that does not avoid it: there would be no end
            avoid |= {error.op}
            model = model if fresh is None else fresh()
            if store is not None:
                store.restart()
            continue
        if plan_only:
            return Folded(model, whole, avoid=avoid)
        found = plans[0].edits.correspondences
        if joined is not None:
            found = found.then(joined)
        unsettled = joined is not None or any(_writes_operators(plan) for plan in plans)
        return Folded(reading.model, whole, found, grown, unsettled)


def _planned(
    model: onnx.ModelProto,
    options: FoldOptions,
    folder: Path | None,
    store: Store | None,
    avoid: frozenset[str],
) -> tuple[Reading, list[FoldPlan]]:
    """A model's views and plans, local functions inlined where more BatchNorms fold then."""
    reading = read(model, folder=folder, freeze_inputs=options.freeze_inputs, store=store)
    plans = plan_folds(reading, options, avoid)
    while model.functions and (stays := _stays(reading, plans)):
        inlined = inline(model, in_the_way(reading, stays))
        if inlined is model:
            break
        deeper = read(inlined, folder=folder, freeze_inputs=options.freeze_inputs, store=store)
        better = plan_folds(deeper, options, avoid)
        if len(_stays(deeper, better)) >= len(stays):
            break
        model, reading, plans = inlined, deeper, better
    return reading, plans


def _stays(reading: Reading, plans: Sequence[FoldPlan]) -> list[tuple[Graph, str]]:
    """(graph, operator) of everything that a plan leaves."""
    pairs = zip(reading.scopes, plans, strict=True)
    return [(scope.graph, entry.node) for scope, plan in pairs for entry in plan.refused]


def _writes_operators(plan: FoldPlan) -> bool:
    """Whether a fold puts operators into the graph: an Add behind a MatMul, a leftover."""
    shifts = (
        any(m is not None and m.has_shift for m in (r.input_map, r.output_map))
        for r in plan.edits.rewrites
        if r.op.kind in ("MatMul", "Einsum")
    )
    return bool(plan.edits.leftovers) or any(e.how == "merged" for e in plan.entries) or any(shifts)


def _join_recurrent(
    reading: Reading, plan: FoldPlan, avoid: frozenset[str]
) -> Correspondences | None:
    """The inverse of the insertion's split; the plan gets an entry for each layer.

    Only where a BatchNorm has left between the layer and what makes its input: a MatMul that the
    model has in front of a layer for itself is none of the fold's business. None where there is
    nothing to join.
    """
    if not any(op.kind in RECURRENT for op in reading.main.graph.ops.values()):
        return None
    from bnpass.frontends.onnx import recurrent

    there = recurrent.joinable(reading.main.graph)
    folded = read(reading.model, folder=reading.folder, store=reading.store)
    pairs = recurrent.joinable(folded.main.graph)
    names = recurrent.join(folded, there.keys() | avoid)
    for name in names:
        kind = folded.main.graph.ops[name].kind
        plan.entries.append(FoldEntry(name, kind, (name,), "forward", (name,)))
    gone = (op.outputs[0] for name in names for op in pairs[name] if op is not None)
    return Correspondences(gone=frozenset(gone)) if names else None


def _check_growth(model: onnx.ModelProto, grown: int, most: float) -> None:
    """Raise RefusedError when clones of ``grown`` bytes made a model ``most`` times as large."""
    if grown <= _SMALL:
        return
    before = sum(external.nbytes(t) or 0 for t in external.tensors(model)) - grown
    if grown > (most - 1) * before:
        raise RefusedError(
            f"shared weights would have to be stored {grown / 2**20:.1f} MiB more than once",
            "allow it with --max-growth (max_growth=), or leave layers out with --skip",
        )


def _joined(plans: Sequence[FoldPlan], reading: Reading) -> FoldPlan:
    entries: list[FoldEntry] = []
    for plan, scope in zip(plans, reading.scopes, strict=True):
        entries += [_inside(entry, scope) for entry in plan.entries]
    if not plans:
        return FoldPlan(entries)
    return FoldPlan(entries, plans[0].edits, plans[0].arithmetic, plans[0].spared)


def _inside(entry: FoldEntry, scope: Scope) -> FoldEntry:
    return replace(entry, node=scope.path + entry.node) if scope.path else entry
