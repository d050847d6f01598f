"""A map's walk through a graph, with the ways to share it out tried one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bnpass.graph import Graph, Op
from bnpass.passes.trial import Pending, Trial
from bnpass.rules import MapRefusedError, Step

_RETRIES = 64  # alternatives tried for one map before it is given up: keeps the work linear

Steps = Callable[[Op, Pending, Trial], list[Step]]
"""The steps that an operator leaves open, best first; or MapRefusedError."""

Take = Callable[[Op, Step, Pending, Trial], None]
"""Notes what a step changes, and what it asks of the operators to visit next."""


def walk(graph: Graph, pending: Pending, trial: Trial, steps: Steps, take: Take) -> Trial:
    """Visit operators until none waits; where one refuses, go back to the last open choice.

    Raises:
        MapRefusedError: no choice leads to absorbers everywhere, or too many do not.
    """
    # No more than the last ones can be reached again, however long the walk is.
    choices: deque[tuple[Op, list[Step], Pending, Trial]] = deque(maxlen=_RETRIES)
    resumed: tuple[Op, list[Step], Pending, Trial] | None = None
    retries = 0
    while True:
        try:
            if resumed is not None:
                (op, open_steps, pending, trial), resumed = resumed, None
            elif pending.heap:
                op = graph.ops[pending.pop()]
                open_steps = steps(op, pending, trial)
            else:
                return trial
            if len(open_steps) > 1:
                choices.append((op, open_steps[1:], pending.copy(), trial.copy()))
            take(op, open_steps[0], pending, trial)
        except MapRefusedError:
            if not choices:
                raise
            resumed = choices.pop()
            retries += 1
            if retries > _RETRIES:
                why = "too many ways to share the map out"
                raise MapRefusedError(why, resumed[0]) from None
