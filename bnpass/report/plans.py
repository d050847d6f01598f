"""Tables of what a pass plans: sites and folds, and every refusal with its reason."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bnpass.report.tables import Table
from bnpass.report.words import plural

if TYPE_CHECKING:
    from bnpass.passes.fold import FoldPlan
    from bnpass.passes.sites import InsertPlan


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
    """``4 of 4 BatchNorms and 1 of 2 other scales and shifts folded (5 backward)``."""
    said, gone = [], {id(entry) for entry in plan.folded}
    for is_norm, what in ((True, "BatchNorm"), (False, "other scale and shift")):
        here = [e for e in plan.entries if (e.kind == "BatchNormalization") == is_norm]
        if here:
            going = sum(id(e) in gone for e in here)
            noun = what if len(here) == 1 else plural(what).replace("scale ", "scales ")
            said.append(f"{going:,} of {len(here):,} {noun}")
    ways = Counter(entry.how for entry in plan.folded)
    how = ", ".join(f"{n:,} {way}" for way, n in ways.items())
    verb = "folded" if done else "would fold"
    return f"{' and '.join(said)} {verb}" + (f" ({how})" if how else "")


def spared_summary(plan: FoldPlan) -> str:
    """How many constants are left alone for which reason."""
    counts = Counter(entry.reason for entry in plan.spared)
    return ", ".join(f"{reason} ({n})" for reason, n in counts.most_common())
