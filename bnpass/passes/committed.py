"""What a pass has decided so far: the maps that operators take in, and the operators that go."""

from __future__ import annotations

from bnpass.ir.correspondence import Relations
from bnpass.ir.edits import Rewrite
from bnpass.ir.graph import Graph, Op, Use
from bnpass.passes.propagation import Propagation


class Committed:
    """The edits of one plan while it is made.

    Attributes:
        rewrites: what operators take in, by name.
        removed: operators that go, by name, and the input that each passes on.
        unread: those of them whose results nobody reads: what they read is as good as unread.
        relations: what becomes of every value.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.rewrites: dict[str, Rewrite] = {}
        self.removed: dict[str, int] = {}
        self.unread: set[str] = set()
        self.relations = Relations()

    @property
    def removals(self) -> tuple[tuple[Op, int], ...]:
        """The operators that go, each with the input that it passes on."""
        return tuple((self.graph.ops[name], data) for name, data in self.removed.items())

    def uses(self, value: str) -> list[Use]:
        """The readings of a value, but for those of removed operators that nobody reads."""
        uses = self.graph.uses(value)
        return [use for use in uses if use.op.name not in self.unread] if self.unread else uses

    def remove(self, op: Op, data: int) -> None:
        """An operator goes: what read its output reads its input ``data`` from then on."""
        self.removed[op.name] = data
        self.rewrites.pop(op.name, None)

    def take(self, propagation: Propagation, sources: tuple[str, ...] = ()) -> None:
        """Take a propagation's changes over, on behalf of the operators named."""
        for op, m in propagation.input_maps:
            self.rewrites[op.name] = self._rewrite(op).add_input_map(m, sources)
        for op, m in propagation.output_maps:
            self.rewrites[op.name] = self._rewrite(op).add_output_map(m, sources)
        for op, index, m in propagation.constants:
            self.rewrites[op.name] = self._rewrite(op).add_constant(index, m, sources)
        for value, m in propagation.asked.items():
            self.relations.move(value, now=m)
        for value, m in propagation.carried.items():
            self.relations.move(value, later=m)
        self.relations.gone |= propagation.lost

    def _rewrite(self, op: Op) -> Rewrite:
        return self.rewrites.get(op.name) or Rewrite(op)
