"""A map's walk through a graph, with the ways to share it out tried one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bnpass.ir.graph import Graph, Op
from bnpass.passes.propagation import Propagation, Worklist
from bnpass.rules import MapRefusedError, Step

_RETRIES = 64  # alternatives tried for one map before it is given up: keeps the work linear

Steps = Callable[[Op, Worklist, Propagation], list[Step]]
"""The steps that an operator leaves open, best first; or MapRefusedError."""

Take = Callable[[Op, Step, Worklist, Propagation], None]
"""Notes what a step changes, and what it asks of the operators to visit next."""


def search(
    graph: Graph, worklist: Worklist, propagation: Propagation, steps: Steps, take: Take
) -> Propagation:
    """Visit operators until none waits; where one refuses, go back to the last open choice.

    Raises:
        MapRefusedError: no choice leads to absorbers everywhere, or too many do not.
    """
    # No more than the last ones can be reached again, however long the walk is.
    choices: deque[tuple[Op, list[Step], Worklist, Propagation]] = deque(maxlen=_RETRIES)
    resumed: tuple[Op, list[Step], Worklist, Propagation] | None = None
    retries = 0
    while True:
        try:
            if resumed is not None:
                (op, open_steps, worklist, propagation), resumed = resumed, None
            elif worklist.heap:
                op = graph.ops[worklist.pop()]
                open_steps = steps(op, worklist, propagation)
            else:
                return propagation
            if len(open_steps) > 1:
                choices.append((op, open_steps[1:], worklist.copy(), propagation.copy()))
            take(op, open_steps[0], worklist, propagation)
        except MapRefusedError:
            if not choices:
                raise
            resumed = choices.pop()
            retries += 1
            if retries > _RETRIES:
                why = "too many ways to divide the map among its inputs"
                raise MapRefusedError(why, resumed[0]) from None
