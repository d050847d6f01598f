"""Strip: take out what BatchNorm makes unnecessary, on request.

Source: arXiv:1502.03167, section 4.2.1: remove Dropout (or reduce it), remove Local Response
Normalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnpass.errors import UsageError, close_matches
from bnpass.ir.affine import Map
from bnpass.ir.correspondence import Correspondences, Relations
from bnpass.ir.edits import GraphEdits, Rewrite
from bnpass.ir.graph import Graph, Op
from bnpass.passes.select import selector
from bnpass.report.plans import shown_strip
from bnpass.report.shown import Shown
from bnpass.report.tables import Table

KINDS = {"lrn": "LRN", "dropout": "Dropout"}


@dataclass(frozen=True)
class StripEntry:
    """What becomes of one operator, in a few words, and why it stays."""

    node: str
    kind: str
    what: str
    reason: str = ""


@dataclass(frozen=True, repr=False)
class StripPlan(Shown):
    """What goes.

    Attributes:
        removed: names of the operators that go.
        reduced: names of Dropouts that get another ratio.
        refused: (name, reason) of those that stay.
        edits: what is to be done. The values behind an LRN that goes correspond to none.
        kinds: operator types by name.
    """

    removed: list[str] = field(default_factory=list)
    reduced: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    edits: GraphEdits = field(default_factory=GraphEdits)
    kinds: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def entries(self) -> list[StripEntry]:
        """Every operator that was asked for."""
        return [
            *(StripEntry(name, self.kinds[name], "is taken out") for name in self.removed),
            *(StripEntry(name, self.kinds[name], "gets another ratio") for name in self.reduced),
            *(StripEntry(n, self.kinds[n], "stays", reason) for n, reason in self.refused),
        ]

    def shown(self) -> list[Table | str]:
        """What the command prints of it."""
        return shown_strip(self)

    @property
    def does_something(self) -> bool:
        """Whether the result is another model than the one given."""
        return bool(self.removed or self.reduced)

    @property
    def norms(self) -> frozenset[str]:
        """The LRNs that go: what they did is missing from then on, and nothing else."""
        return frozenset(name for name in self.removed if self.kinds[name] == "LRN")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "removed": self.removed,
            "reduced": self.reduced,
            "refused": [{"node": node, "reason": reason} for node, reason in self.refused],
        }


def plan_strip(
    graph: Graph,
    what: Sequence[str] = ("lrn", "dropout"),
    *,
    dropout: float | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> StripPlan:
    """Plan the removal of operators.

    Args:
        graph: the view.
        what: ``lrn``, ``dropout`` or both.
        dropout: instead of going, every Dropout gets this ratio, in [0, 1).
        only, skip: glob patterns on operator names.

    Raises:
        UsageError: an unknown kind, or a ratio out of range.
    """
    kinds = {_kind(name) for name in what}
    if dropout is not None and not 0 <= dropout < 1:
        raise UsageError(f"a Dropout ratio of {dropout}", "it lies in [0, 1)")
    selected = selector(only, skip)
    plan = StripPlan()
    removed: list[tuple[Op, int]] = []
    rewrites: list[Rewrite] = []
    for op in graph.ops_in_order:
        if op.kind not in kinds or not selected(op):
            continue
        if op.kind == "Dropout" and dropout:
            rewrites.append(Rewrite(op, constants={1: _number(dropout)}))
            plan.reduced.append(op.name)
        elif any(graph.uses(name) or graph.is_output(name) for name in op.outputs[1:] if name):
            plan.refused.append((op.name, "its mask is read"))
        else:
            removed.append((op, 0))
            plan.removed.append(op.name)
    edits = GraphEdits(
        tuple(rewrites), tuple(removed), correspondences=_what_is_what(graph, removed)
    )
    kinds_of = {op.name: op.kind for op in graph.ops_in_order if op.kind in kinds}
    return StripPlan(plan.removed, plan.reduced, plan.refused, edits, kinds_of)


def _what_is_what(graph: Graph, removed: list[tuple[Op, int]]) -> Correspondences:
    """What an operator made is what it read: of the graph whose LRNs pass on what they read."""
    return Relations().correspondences(graph, removed)


def _kind(name: str) -> str:
    if name.lower() not in KINDS:
        raise UsageError(
            f"cannot strip {name!r}",
            close_matches(name.lower(), KINDS) or "one of " + ", ".join(KINDS),
        )
    return KINDS[name.lower()]


def _number(value: float) -> Map:
    return Map(np.asarray(0.0), np.asarray(value))
