"""Whole folds and strips of a user's module: copy, run, read, plan, edit, compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from bnpass.frontends.fx.checking import Reference, culprits, refusal
from bnpass.frontends.fx.copying import duplicate
from bnpass.frontends.fx.draft import Draft
from bnpass.frontends.fx.editor import OverflowedError
from bnpass.frontends.fx.growth import copies, room_of, tie_again, ties
from bnpass.frontends.fx.hooks import bake
from bnpass.frontends.fx.inputs import Example
from bnpass.frontends.fx.loading import uninstall
from bnpass.frontends.fx.module_collapse import collapse_in
from bnpass.frontends.fx.module_fold import Folder, Work, patterns
from bnpass.frontends.fx.own_graph import named
from bnpass.frontends.fx.read import TracedModel
from bnpass.frontends.fx.recording import Frame
from bnpass.frontends.fx.recurrent_plan import join
from bnpass.frontends.fx.tracing import mode
from bnpass.passes.collapse import as_folds
from bnpass.passes.fold import FoldEntry, FoldPlan, overflows, plan_fold
from bnpass.passes.strip import plan_strip


@dataclass(frozen=True)
class ModuleFoldOptions:
    """See :func:`bnpass.fold`."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    leftover: str = "bn"
    training_mode: str = "refuse"
    fold_norms: bool = False
    max_growth: float = 4.0
    collapse: str = "bn"


def fold_in(
    module: nn.Module, example: Example, options: ModuleFoldOptions
) -> tuple[nn.Module, FoldPlan]:
    """A folded copy of a module, and the plan that was carried out.

    A chain whose fold would change what the module computes stays, with what it would do.
    """
    given = duplicate(module)
    if options.training_mode == "inference":
        given.eval()
    wanted = Reference.of(given, example, (None,))
    root, plan = _folded(given, example, options, {})
    fault = wanted.difference(root)
    if not fault:
        return root, plan
    entries = plan.folded

    def only(some: list[FoldEntry]) -> str:
        others = {n: "another is tried" for e in entries if e not in some for n in e.nodes}
        return wanted.difference(_folded(given, example, options, others)[0])

    found = culprits(entries, fault, only) if entries else []
    root, plan = _folded(given, example, options, {n: t for e, t in found for n in e.nodes})
    fault = wanted.difference(root)
    if fault:
        raise refusal(fault)
    plan.entries.extend(replace(e, how="", into=(), reason=text) for e, text in found)
    return root, plan


def _folded(
    module: nn.Module, example: Example, options: ModuleFoldOptions, banned: dict[str, str]
) -> tuple[nn.Module, FoldPlan]:
    avoid: dict[str, str] = {}
    while True:
        draft = Draft(duplicate(module), example, as_is=True)
        bake(draft.root)
        skip = (*options.skip, *patterns(banned))
        joined = join(draft.root, only=options.only, skip=skip)
        regions = collapse_in(draft, mode=options.collapse, only=options.only, skip=skip)
        joined += as_folds(regions)
        try:
            plan = _carried_out(draft, options, avoid, dict(banned))
        except OverflowedError as error:
            avoid[error.op] = overflows(error.op, error.channel)
            continue
        plan.entries[:0] = joined
        uninstall(draft.root)
        return draft.root, plan


def _carried_out(
    draft: Draft, options: ModuleFoldOptions, avoid: dict[str, str], banned: dict[str, str]
) -> FoldPlan:
    refused: list[FoldEntry] = []
    tried = False
    while True:
        reading = draft.look()
        plan = _plan(reading, options, avoid, banned)
        folder = Folder(draft, plan.edits)
        work, room = folder.work, room_of(draft.root, options.max_growth)
        if grown := room.too_large(copies(reading, folder.planned)):
            avoid |= grown
        elif constants := _beside_norms(plan, work, reading):
            banned.update({e.node: e.reason for e in constants})
            refused += constants
        elif work.reasons:
            stopped = _stopped(plan, work.reasons)
            banned.update({name: e.reason for e in stopped for name in e.nodes})
            banned.update({k: v for k, v in work.reasons.items() if not stopped})
            refused += stopped
        elif work.missing:
            spared = [] if options.only or options.fold_norms else _spared(plan, work, reading)
            aside = _aside(plan, work, reading) if not (spared or tried or options.only) else []
            if aside:  # a BatchNorm may go by such a constant
                tried = True
                more = {**banned, **{e.node: e.reason for e in aside}}
                less = _norms(_plan(reading, options, avoid, more), reading)
                spared = aside if len(less) >= len(_norms(plan, reading)) else []
            banned.update({name: e.reason for e in spared for name in e.nodes})
            refused += spared
            if not spared:
                draft.rewrite(list(work.missing.values()))
        else:
            tied = ties(draft.root)
            folder.apply()
            draft.settle()
            tie_again(draft.root, tied)
            plan.entries.extend(refused)
            return plan


def _stopped(plan: FoldPlan, reasons: dict[str, str]) -> list[FoldEntry]:
    """The chains of a plan whose edits cannot be made, with the reasons."""
    sources = _by_source(plan, reasons)
    found = []
    for entry in plan.entries:
        reason = next((sources[n] for n in entry.nodes if n in sources), "")
        if reason and entry.how:
            found.append(replace(entry, how="", into=(), reason=reason))
    return found


T = TypeVar("T")


def _by_source(plan: FoldPlan, said: dict[str, T]) -> dict[str, T]:
    """What is said of edited operators, also by the operators whose maps they take in."""
    found = dict(said)
    for rewrite in plan.edits.rewrites:
        if rewrite.op.name in said:
            found.update(dict.fromkeys(rewrite.sources, said[rewrite.op.name]))
    return found


def _plan(
    reading: TracedModel, options: ModuleFoldOptions, avoid: dict[str, str], banned: dict[str, str]
) -> FoldPlan:
    return plan_fold(
        reading.graph, only=options.only, skip=(*options.skip, *patterns(banned)),
        leftover=options.leftover, avoid=avoid, fold_norms=options.fold_norms,
    )  # fmt: skip


def _norms(plan: FoldPlan, reading: TracedModel) -> list[FoldEntry]:
    """What leaves with a BatchNorm in it."""
    ops = reading.graph.ops
    return [e for e in plan.entries if e.how
            and any(n in ops and ops[n].kind == "BatchNormalization" for n in e.nodes)]  # fmt: skip


def _reason(frame: Frame) -> str:
    return f"{named(frame)} would become a graph for no BatchNorm; only= asks for it"


def _beside_norms(plan: FoldPlan, work: Work, reading: TracedModel) -> list[FoldEntry]:
    """Constants that cannot be taken out, of chains with a BatchNorm: that may go by them."""
    chained = {n for e in _norms(plan, reading) for n in e.nodes}
    ops = reading.graph.ops
    return [FoldEntry(name, ops[name].kind, (name,), "", (), reason)
            for name, reason in work.reasons.items()
            if name in chained and ops[name].kind != "BatchNormalization"]  # fmt: skip


def _aside(plan: FoldPlan, work: Work, reading: TracedModel) -> list[FoldEntry]:
    """Constants beside BatchNorms for whose removal alone a forward would become a graph."""
    ops = reading.graph.ops
    gone = {op.name for op, _ in plan.edits.removed if op.kind != "BatchNormalization"}
    taken = {id(frame.module) for name, frame in work.needs.items() if name not in gone}
    return [FoldEntry(name, ops[name].kind, (name,), "", (), _reason(frame))
            for name, frame in work.needs.items()
            if name in gone and id(frame.module) not in taken]  # fmt: skip


def _spared(plan: FoldPlan, work: Work, reading: TracedModel) -> list[FoldEntry]:
    """Chains without a BatchNorm for which alone a forward would become a graph: they stay."""
    frames = _by_source(plan, work.needs)
    chains = [(e, {id(frames[n].module): frames[n] for n in e.nodes if n in frames})
              for e in plan.entries if e.how]  # fmt: skip
    norms = _norms(plan, reading)
    taken = {key for e, asked in chains if e in norms for key in asked}
    found = []
    for entry, asked in chains:
        alone = [frame for key, frame in asked.items() if key not in taken]
        if alone:
            found.append(replace(entry, how="", into=(), reason=_reason(alone[0])))
    return found


def strip_in(module: nn.Module, example: Example, **options: Any) -> nn.Module:
    """A copy of a module without LRN and Dropout; see :func:`bnpass.strip`."""
    draft = Draft(duplicate(module), example)
    skip = tuple(options.pop("skip", ()))
    what = options.pop("what")
    banned: dict[str, str] = {}
    while True:
        with mode(draft.root, False):
            reading = draft.look()
        plan = plan_strip(reading.graph, what, skip=(*skip, *patterns(banned)), **options)
        folder = Folder(draft, plan.edits)
        if folder.work.reasons:
            banned.update(folder.work.reasons)
        elif folder.work.missing:
            draft.rewrite(list(folder.work.missing.values()))
        else:
            folder.apply()
            return draft.root
