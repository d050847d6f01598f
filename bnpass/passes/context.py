"""What a rule may ask of the graph around an operator, with what has been decided so far."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnpass.ir.graph import Constant, Dim, Graph, Op
from bnpass.ir.operators import operator
from bnpass.ir.ranks import rank_of
from bnpass.passes.committed import Committed
from bnpass.rules import MapRefusedError

_MANY = 1 << 20  # paths: more than any real sum has


class GraphContext:
    """A graph as rules see it (:class:`bnpass.rules.RuleContext`).

    Args:
        graph: the view.
        committed: the maps that its constants have taken in so far; none by default.
    """

    def __init__(self, graph: Graph, committed: Committed | None = None) -> None:
        self.graph = graph
        self.constant: Callable[[str], Constant | None] = graph.constants.get
        self._committed = committed or Committed(graph)
        self._paths: dict[str, int] = {}

    def shape(self, value: str) -> tuple[Dim, ...]:
        """The dimensions of a value; MapRefusedError when not even its rank is known."""
        shape = self.graph.shape(value)
        if shape is None:
            raise MapRefusedError(f"the shape of {value!r} is not known")
        return shape

    def rank(self, value: str) -> int:
        """The number of dimensions of a value; MapRefusedError when it is not known."""
        rank = rank_of(self.graph, value)
        if rank is None:
            raise MapRefusedError(f"the shape of {value!r} is not known")
        return rank

    def paths(self, value: str) -> int:
        """In how many ways sums lead to a value: how often a shared term counts in it."""
        stack, counts = [value], self._paths
        while stack:
            op = self.graph.producer(stack[-1])
            terms = [] if op is None else _terms(op)
            missing = [t for t in terms if t not in counts and self.constant(t) is None]
            if missing:
                stack += missing
                continue
            counts[stack.pop()] = min(sum(counts.get(t, 0) for t in terms) or 1, _MANY)
        return counts[value]

    def producer(self, value: str) -> Op | None:
        """The operator that computes a value; None for inputs and constants."""
        return self.graph.producer(value)

    def unread(self, value: str) -> bool:
        """Whether nothing reads a value."""
        return not self._committed.uses(value) and not self.graph.is_output(value)

    def pinned(self, value: str, otherwise: str = "no constant") -> str:
        """Why a value that looks like a constant is none."""
        return self.graph.pinned.get(value, otherwise)

    def shifted(self, op: Op) -> bool:
        """Whether an operator's own weights have taken a shift in: it adds something by then."""
        rewrite = self._committed.rewrites.get(op.name)
        parts = (rewrite.input_map, rewrite.output_map) if rewrite is not None else ()
        return any(m is not None and m.has_shift for m in parts)

    def current(self, op: Op, index: int) -> np.ndarray:
        """A constant input in float64, the maps that it has already taken in applied.

        One that is left out is 0, and a new one once it has taken something in.
        """
        name = op.input(index)
        constant = self.graph.constant(name)
        if name and constant is None:
            raise MapRefusedError(f"its input {name!r} is {self.pinned(name)}", op)
        array = np.zeros(()) if constant is None else np.asarray(constant.small, np.float64)
        rewrite = self._committed.rewrites.get(op.name)
        m = rewrite.constants.get(index) if rewrite else None
        return array if m is None else m.scale * array + m.shift


def _terms(op: Op) -> list[str]:
    """The values of which an operator's output is the sum, or the only one that it passes on."""
    row = operator(op.kind)
    if row.sum:
        return [name for name in op.inputs if name]
    return op.inputs[:1] if row.repeats else []
