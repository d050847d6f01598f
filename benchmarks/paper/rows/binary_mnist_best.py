"""Section 4.1 against the plain network at its best: the same with a start 4 times as wide.

Four times Glorot's start lets the gradients through three sigmoids; the plain network then learns
from the first step on. It stands beside the row of the small start, whose gain is mostly the start.
"""

from __future__ import annotations

from benchmarks.paper.arms import Outcome
from benchmarks.paper.context import Context
from benchmarks.paper.results import Line
from benchmarks.paper.rows.binary_mnist import Start, compare, long_run

NAME = "binary-mnist-best"
MINUTES = 6
LARGE = {"scheme": "glorot", "gain": 4.0}
START = Start("4 x Glorot in both arms", LARGE, LARGE, "shown always",
              ratios=(3.0, 2.0), seeds=1)


PARTS = ("plain", "BN")


def part(ctx: Context, name: str) -> list[Outcome]:
    """An arm over all steps."""
    return long_run(ctx, START, name, NAME)


def run(ctx: Context, found: dict[str, list[Outcome]] | None = None) -> list[Line]:
    """One line."""
    plain, bn = (found[name] if found else part(ctx, name) for name in PARTS)
    return [compare(ctx, START, plain, bn, NAME)]
