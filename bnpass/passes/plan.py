"""What every pass hands back: a plan that can be read, printed and serialised before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from bnpass.ir.edits import GraphEdits


class PlanEntry(Protocol):
    """What becomes of one operator."""

    @property
    def node(self) -> str:
        """The operator's name."""

    @property
    def kind(self) -> str:
        """Its ONNX operator type."""

    @property
    def reason(self) -> str:
        """Why it stays as it is, for somebody who has never seen this code; or empty."""


class Plan(Protocol):
    """A pass is a function from a graph and options to one of these; it edits nothing."""

    @property
    def entries(self) -> Sequence[PlanEntry]:
        """Everything that was looked at, with reasons."""

    @property
    def edits(self) -> GraphEdits:
        """Everything that a frontend has to change."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""

    def __str__(self) -> str:
        """Lines for people."""


def lines(entries: Iterable[tuple[PlanEntry, str]], empty: str) -> str:
    """One line an entry: the operator, what is done with it, and the reason.

    Args:
        entries: with what is done, in a few words.
        empty: what to say when there is none.
    """
    found = []
    for entry, done in entries:
        reason = f": {entry.reason}" if entry.reason else ""
        found.append(f"{entry.kind} {entry.node} {done}{reason}")
    return "\n".join(found) or empty
