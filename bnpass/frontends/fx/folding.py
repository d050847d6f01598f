"""Whole folds and strips of a user's module: copy, run, read, plan, edit, compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from bnpass.frontends.fx.checking import Reference
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
    """A folded copy of a module, and the plan that was carried out."""
    avoid: dict[str, str] = {}
    while True:
        draft = Draft(duplicate(module), example, as_is=True)
        if options.training_mode == "inference":
            draft.root.eval()
        wanted = Reference.of(draft.root, example, (None,))
        bake(draft.root)
        joined = join(draft.root, only=options.only, skip=options.skip)
        regions = collapse_in(draft, mode=options.collapse, only=options.only, skip=options.skip)
        joined += as_folds(regions)
        try:
            plan = _carried_out(draft, options, avoid)
        except OverflowedError as error:
            avoid[error.op] = overflows(error.op, error.channel)
            continue
        plan.entries[:0] = joined
        uninstall(draft.root)
        wanted.check(draft.root)
        return draft.root, plan


def _carried_out(draft: Draft, options: ModuleFoldOptions, avoid: dict[str, str]) -> FoldPlan:
    banned: dict[str, str] = {}
    refused: list[FoldEntry] = []
    while True:
        reading = draft.look()
        plan = plan_fold(
            reading.graph, only=options.only, skip=(*options.skip, *patterns(banned)),
            leftover=options.leftover, avoid=avoid, fold_norms=options.fold_norms,
        )  # fmt: skip
        folder = Folder(draft, plan.edits)
        work, room = folder.work, room_of(draft.root, options.max_growth)
        if grown := room.too_large(copies(reading, folder.planned)):
            avoid |= grown
        elif work.reasons:
            stopped = _stopped(plan, work.reasons)
            banned.update({name: e.reason for e in stopped for name in e.nodes})
            banned.update({k: v for k, v in work.reasons.items() if not stopped})
            refused += stopped
        elif work.missing:
            spared = [] if options.only or options.fold_norms else _spared(plan, work, reading)
            banned.update({name: e.reason for e in spared for name in e.nodes})
            refused += spared
            if not spared:
                draft.rewrite(list(work.missing.values()))
        else:
            tied = ties(draft.root)
            folder.apply()
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


def _spared(plan: FoldPlan, work: Work, reading: TracedModel) -> list[FoldEntry]:
    """Chains without a BatchNorm for which alone a forward would become a graph: they stay."""
    frames = _by_source(plan, work.needs)
    chains = [(e, {id(frames[n].module): frames[n] for n in e.nodes if n in frames})
              for e in plan.entries if e.how]  # fmt: skip
    ops = reading.graph.ops
    norms = [(e, asked) for e, asked in chains
             if any(n in ops and ops[n].kind == "BatchNormalization" for n in e.nodes)]  # fmt: skip
    taken = {key for _, asked in norms for key in asked}
    found = []
    for entry, asked in chains:
        alone = [frame for key, frame in asked.items() if key not in taken]
        if alone:
            reason = f"{named(alone[0])} would become a graph for no BatchNorm; only= asks for it"
            found.append(replace(entry, how="", into=(), reason=reason))
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
