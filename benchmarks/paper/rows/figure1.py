"""Figure 1 b and c: the {15, 50, 85}th percentiles of pre-activations of the last hidden layer.

Each unit by itself, as in the paper, on the same 1,000 images all the time, from two starts: with
the paper's own the plain network has not begun to learn after so few steps, so nothing of it moves;
with a wide one both learn. Reported is how far the median wanders (largest minus smallest) and how
wide the middle is at the end. Internal covariate shift is shown, it is no pass criterion.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from benchmarks.paper.arms import Arm, Outcome, slug, train
from benchmarks.paper.context import Context, Split
from benchmarks.paper.pictures import draw_percentiles
from benchmarks.paper.results import Line, percent
from benchmarks.paper.rows.binary_mnist import MODEL, SMALL
from benchmarks.paper.rows.binary_mnist_best import LARGE
from bnpass.files import atomic_write
from bnpass.training import TrainConfig

NAME = "figure1"
MINUTES = 4
STEPS = 6_000
UNITS = tuple(range(10))
VALUE = "before:node_sigmoid_2"
STARTS = {"N(0, 0.01)": SMALL, "4 x Glorot": LARGE}
CONFIG = TrainConfig(momentum=0.0, schedule="constant", batch_size=60)


def run(ctx: Context) -> list[Line]:
    """A line and a picture each start."""
    split = ctx.open("mnist", MODEL, binary=True)
    return [_line(ctx, split, label, init) for label, init in STARTS.items()]


def _line(ctx: Context, split: Split, label: str, init: dict[str, Any]) -> Line:
    folder, steps = ctx.folder(NAME), ctx.steps(STEPS)
    found = []
    for name in ("plain", "BN"):
        outcome = _watched(ctx, split, Arm(f"{name}, {label}", MODEL, name == "BN", CONFIG, init))
        atomic_write(folder / f"percentiles-{slug(outcome.label)}.csv",
                     outcome.history.percentiles_to_csv())
        found.append(outcome)
    draw_percentiles(folder / f"figure1bc-{slug(label)}.png", found, f"{VALUE}[{UNITS[0]}]")
    plain, bn = (wander(o) for o in found)
    return Line(
        f"Figure 1 b, c: travel of the median of {len(UNITS)} pre-activations, {label}, "
        f"{steps} steps",
        f"{plain[0]:.2f}, spread {plain[1]:.2f} at the end; {percent(found[0].test)}",
        f"{bn[0]:.2f}, spread {bn[1]:.2f} at the end; {percent(found[1].test)}",
        f"{plain[0] / bn[0]:.1f}x less; {plain[2] / bn[2]:.1f}x less in units of the spread",
        "the picture", None, {"plain": plain, "bn": bn},
    )


def _watched(ctx: Context, split: Split, arm: Arm) -> Outcome:
    """The arm at its best rate, chosen without watching."""
    steps = ctx.steps(STEPS)
    rate = train(ctx, arm, split, NAME, steps=max(20, steps // 10)).lr
    watch = tuple(f"{VALUE}[{unit}]" for unit in UNITS)
    arm = replace(arm, config=replace(arm.config, watch=watch))
    return train(ctx, arm, split, NAME, steps=steps, lr=rate, validations=5)


def wander(outcome: Outcome) -> tuple[float, float, float]:
    """Means over the units: travel of the median, final spread, travel over final spread."""
    units: dict[str, list[tuple[float, float, float]]] = {}
    for _step, name, *points in outcome.history.percentiles:
        units.setdefault(name, []).append((points[0], points[1], points[2]))
    travel = {n: max(p[1] for p in ps) - min(p[1] for p in ps) for n, ps in units.items()}
    spread = {n: ps[-1][2] - ps[-1][0] for n, ps in units.items()}
    return (statistics.fmean(travel.values()), statistics.fmean(spread.values()),
            statistics.fmean(travel[n] / max(spread[n], 1e-9) for n in units))
