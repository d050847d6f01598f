"""Tables of what a pass plans: sites and folds, and every refusal with its reason."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bnpass.report.tables import Table
from bnpass.report.words import many, plural

if TYPE_CHECKING:
    from bnpass.passes.collapse import CollapsePlan
    from bnpass.passes.fold import FoldPlan
    from bnpass.passes.sites import InsertPlan
    from bnpass.passes.strip import StripPlan


_TRUSTING = ", trusting a declared shape"


def site_table(plan: InsertPlan) -> Table:
    """Every BN to insert: where, how many channels, before what, foldable into what."""
    table = Table("BatchNorm to insert", ["site", "channels", "before", "folds into",
                                          "biases dropped"], right=frozenset({1}))
    for site in plan.sites:
        branch = (f"(a branch of {site.branch_of})",) if site.branch_of else ()
        before = (*site.nonlinearities, *branch)
        name = f"{site.name}{_TRUSTING if site.declared else ''}"
        table.add(name, site.channels, before, site.absorbers, site.dropped or None)
    return table


def skipped_table(plan: InsertPlan) -> Table:
    """Every nonlinearity that gets no BN, with the reason."""
    table = Table("nonlinearities without a BatchNorm", ["node", "kind", "reason"])
    for skip in plan.skipped:
        table.add(skip.node, skip.kind, skip.reason)
    return table


def fold_table(plan: FoldPlan) -> Table:
    """Every map that leaves, and where it goes."""
    table = Table("folds", ["node", "kind", "how", "into"])
    for entry in plan.folded:
        how = f"{entry.how}{_TRUSTING if entry.declared else ''}"
        table.add(entry.node, entry.kind, how, entry.into)
    return table


def refused_table(plan: FoldPlan) -> Table:
    """Every map that stays, as it is or merged with its neighbours, with the reason."""
    table = Table("not folded", ["node", "kind", "how", "reason"])
    for entry in plan.refused:
        table.add(entry.node, entry.kind, entry.how or "stays", entry.reason)
    return table


def spared_table(plan: FoldPlan) -> Table:
    """Every constant that is left alone because a runtime fuses what it is part of."""
    table = Table("left alone", ["node", "kind", "reason"])
    for entry in plan.spared:
        table.add(entry.node, entry.kind, entry.reason)
    return table


def fold_summary(plan: FoldPlan, *, done: bool = True) -> str:
    """``5 of 6 maps folded: 4 of 4 BatchNorms, 1 of 2 other scales and shifts (5 backward)``."""
    said, gone = [], {id(entry) for entry in plan.folded}
    for is_norm, what in ((True, "BatchNorm"), (False, "other scale and shift")):
        here = [e for e in plan.entries if (e.kind == "BatchNormalization") == is_norm]
        if here:
            going = sum(id(e) in gone for e in here)
            noun = what if len(here) == 1 else plural(what).replace("scale ", "scales ")
            said.append(f"{going:,} of {len(here):,} {noun}")
    ways = Counter(entry.how for entry in plan.folded)
    how = ", ".join(f"{n:,} {way}" for way, n in ways.items())
    maps = f"{len(plan.folded):,} of {len(plan.entries):,} maps"
    verb = "folded" if done else "would fold"
    return f"{maps} {verb}: {', '.join(said)}" + (f" ({how})" if how else "")


def spared_summary(plan: FoldPlan) -> str:
    """How many constants are left alone for which reason."""
    counts = Counter(entry.reason for entry in plan.spared)
    return ", ".join(f"{reason} ({n})" for reason, n in counts.most_common())


def strip_table(plan: StripPlan) -> Table:
    """What happens to every layer that was asked for."""
    table = Table("strip", ["node", "what", "reason"])
    for name in plan.removed:
        table.add(name, "taken out", "")
    for name in plan.reduced:
        table.add(name, "reduced", "")
    for name, reason in plan.refused:
        table.add(name, "stays", reason)
    return table


def collapse_table(plan: CollapsePlan) -> Table:
    """Every region, what it becomes and what that costs, or why it stays."""
    table = Table("linear regions", ["ends in", "operators", "becomes", "weights", "reason"],
                  right=frozenset({1}))
    for entry in plan.entries:
        weights = f"{entry.weights[0]} -> {entry.weights[1]}" if entry.into else ""
        table.add(entry.node, len(entry.nodes), entry.into or "stays", weights, entry.reason)
    return table


def insert_summary(plan: InsertPlan) -> str:
    """``4 BatchNorms for 4 of 5 nonlinearities, 4 biases dropped``."""
    served = plan.nonlinearities - len(plan.skipped)
    return (f"{many(len(plan.sites), 'BatchNorm')} for {served:,} of "
            f"{many(plan.nonlinearities, 'nonlinearity')}, {many(plan.dropped, 'bias')} dropped")


def collapse_summary(plan: CollapsePlan) -> str:
    """How many regions become one operator, and what that does to their weights."""
    before, after = (sum(e.weights[k] for e in plan.collapsed) for k in (0, 1))
    return (f"{many(len(plan.collapsed), 'region')} became one operator each, "
            f"{many(before, 'weight')} became {after:,}; {len(plan.refused):,} stay")


def strip_summary(plan: StripPlan) -> str:
    """How many layers go."""
    return (f"{many(len(plan.removed), 'layer')} taken out, "
            f"{many(len(plan.reduced), 'Dropout')} reduced")


Parts = list["Table | str"]


def shown_insert(plan: InsertPlan) -> Parts:
    """What an insertion plans, as tables and lines."""
    return [*_filled(site_table(plan), skipped_table(plan)), *plan.notes,
            insert_summary(plan) if plan.nonlinearities else "no nonlinearity"]


def shown_fold(plan: FoldPlan) -> Parts:
    """What a fold plans, as tables and lines."""
    return [*_filled(fold_table(plan), refused_table(plan), spared_table(plan)),
            fold_summary(plan, done=False) if plan.entries else "nothing to fold"]


def shown_strip(plan: StripPlan) -> Parts:
    """What a strip plans, as tables and lines."""
    return [*_filled(strip_table(plan)),
            strip_summary(plan) if plan.entries else "nothing to strip"]


def shown_collapse(plan: CollapsePlan) -> Parts:
    """What a collapse plans, as tables and lines."""
    return [*_filled(collapse_table(plan)),
            collapse_summary(plan) if plan.entries else "nothing to collapse"]


def _filled(*tables: Table) -> list[Table]:
    return [table for table in tables if table.rows]
