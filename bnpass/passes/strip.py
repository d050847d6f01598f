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
from bnpass.ir.edits import GraphEdits, Rewrite
from bnpass.ir.graph import Graph, Op
from bnpass.passes.select import selector

KINDS = {"lrn": "LRN", "dropout": "Dropout"}


@dataclass(frozen=True)
class StripPlan:
    """What goes.

    Attributes:
        removed: names of the operators that go.
        reduced: names of Dropouts that get another ratio.
        refused: (name, reason) of those that stay.
    """

    removed: list[str] = field(default_factory=list)
    reduced: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    edits: GraphEdits = field(default_factory=GraphEdits)

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
    edits = GraphEdits(rewrites=tuple(rewrites), removed=tuple(removed))
    return StripPlan(plan.removed, plan.reduced, plan.refused, edits)


def _kind(name: str) -> str:
    if name.lower() not in KINDS:
        raise UsageError(
            f"cannot strip {name!r}",
            close_matches(name.lower(), KINDS) or "one of " + ", ".join(KINDS),
        )
    return KINDS[name.lower()]


def _number(value: float) -> Map:
    return Map(np.asarray(0.0), np.asarray(value))
