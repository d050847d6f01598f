"""What an insertion plans: sites, nonlinearities that get none, and the policy that chooses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.edits import BiasDrop, Branch, GraphEdits
from bnpass.ir.graph import Op
from bnpass.passes.plan import PlanEntry
from bnpass.passes.propagation import Propagation
from bnpass.passes.select import matches
from bnpass.report.plans import shown_insert
from bnpass.report.shown import Shown
from bnpass.report.tables import Table


@dataclass(frozen=True)
class Site:
    """A value that gets a BatchNorm.

    Attributes:
        name: of the new BatchNorm.
        value: the value that it normalises.
        axis, channels, rank: the channel axis, its size, and the value's rank.
        nonlinearities: names of those that it stands in front of.
        absorbers: names of the operators into which it will fold.
        dropped: names of the operators that lose their bias.
        drops: the biases, and ``constant`` (C,): what they add to the value together.
        branch_of: the sum of several values in front of the nonlinearities, where the BatchNorm
            stands on one of its branches; empty: it stands on what they read.
        zero: its gamma starts at 0: it ends a residual branch, which then starts as nothing.
        declared: the file's own word had to count for a shape that nothing else tells.
        branches: what stands beside the convolution in front, each with a BatchNorm of its own.
    """

    name: str
    value: str
    axis: int
    channels: int
    rank: int
    nonlinearities: tuple[str, ...]
    absorbers: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    drops: tuple[BiasDrop, ...] = ()
    constant: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    readers: frozenset[str] | None = None
    clones: tuple[Op, ...] = ()
    branch_of: str = ""
    zero: bool = False
    declared: bool = False
    branches: tuple[Branch, ...] = ()

    @property
    def node(self) -> str:
        """The new BatchNorm's name."""
        return self.name

    @property
    def kind(self) -> str:
        """A BatchNorm."""
        return "BatchNormalization"

    @property
    def reason(self) -> str:
        """Nothing is refused here."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "value": self.value,
            "axis": self.axis,
            "channels": self.channels,
            "nonlinearities": list(self.nonlinearities),
            "absorbers": list(self.absorbers),
            "dropped": list(self.dropped),
            "cloned": [op.name for op in self.clones],
            "branch_of": self.branch_of,
            "zero_gamma": self.zero,
            "declared": self.declared,
            "branches": [branch.name for branch in self.branches],
        }


@dataclass(frozen=True)
class Skip:
    """A nonlinearity that gets no BatchNorm, and why."""

    node: str
    kind: str
    reason: str


@dataclass(frozen=True, repr=False)
class InsertPlan(Shown):
    """Where BatchNorms go in one graph, why not elsewhere, and what else to know.

    Attributes:
        sites: where BatchNorms go.
        skipped: nonlinearities that get none.
        nonlinearities: how many there are.
        notes: lines for people.
        split: recurrent layers that were split before, each by edits of its own
            (:func:`bnpass.passes.recurrent.plan_split`): the graph of this plan has them split.
        edits: what is to be done; its BatchNorms have numbers once :func:`initialised` was asked.
            The correspondences are those of a start as ``preserve`` makes it.
    """

    sites: list[Site] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    nonlinearities: int = 0
    notes: list[str] = field(default_factory=list)
    edits: GraphEdits = field(default_factory=GraphEdits)
    split: tuple[PlanEntry, ...] = ()

    @property
    def entries(self) -> list[PlanEntry]:
        """Every BatchNorm to come, every nonlinearity that gets none, every layer that is split."""
        return [*self.sites, *self.skipped, *self.split]

    def shown(self) -> list[Table | str]:
        """What the command prints of it."""
        return shown_insert(self)

    @property
    def per_branch(self) -> frozenset[str]:
        """Nonlinearities that read a sum of branches which are normalised one by one."""
        return frozenset(n for site in self.sites if site.branch_of for n in site.nonlinearities)

    @property
    def dropped(self) -> int:
        """How many biases go."""
        return len({(d.op.name, d.index) for site in self.sites for d in site.drops})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "nonlinearities": self.nonlinearities,
            "sites": [site.to_dict() for site in self.sites],
            "skipped": [vars(skip) for skip in self.skipped],
            "biases_dropped": self.dropped,
            "split": [entry.node for entry in self.split],
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Policy:
    """Which nonlinearities are wanted.

    Attributes:
        gates, last: include gates, and the last nonlinearity in front of an output.
        only, skip: glob patterns on node names and operator types.
        before: operator types, case does not matter; empty: all.
        norms: also behind a LayerNorm, InstanceNorm or GroupNorm.
        allow_unfoldable: insert also where the BatchNorm cannot be folded back.
        clone: duplicate the layer where something else reads its value too.
        sums: where a sum of several layers is normalised: ``branches`` (each of them) or
            ``value`` (the sum).
        linear: also behind layers that no nonlinearity follows before the next layer.
        zero_gamma: let residual branches start as nothing (gamma 0 in their last BatchNorm).
    """

    gates: bool = False
    last: bool = False
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    norms: bool = False
    allow_unfoldable: bool = False
    clone: bool = False
    sums: str = "branches"
    linear: bool = False
    zero_gamma: bool = False


def wanted(op: Op, policy: Policy) -> bool:
    """Whether a policy's names and types let an operator's insertion happen at all."""
    names, before = [op.name, op.kind], [b.lower() for b in policy.before]
    if before and op.kind.lower() not in before:
        return False
    chosen = not policy.only or any(matches(x, policy.only) for x in names)
    return chosen and not any(matches(x, policy.skip) for x in names)


@dataclass(frozen=True)
class InsertionPoint:
    """A legal place for a BatchNorm, found from some nonlinearity."""

    value: str
    axis: int
    channels: int
    rank: int
    propagation: Propagation
    readers: frozenset[str] | None = None
    clones: tuple[Op, ...] = ()
    branch_of: str = ""


def any_map(axis: int, rank: int, size: int) -> Map:
    """A map that stands for every gamma and beta: no two entries equal, signs mixed, no zero."""
    rng = np.random.default_rng(size)
    scale = rng.uniform(0.5, 2.0, size) * np.where(np.arange(size) % 2, 1.0, -1.0)
    return Map.along(axis, rank, scale, rng.uniform(0.5, 2.0, size))
