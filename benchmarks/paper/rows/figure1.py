"""Figure 1 b and c: the {15, 50, 85}th percentiles of pre-activations of the last hidden layer.

Each unit by itself, as in the paper, on the same 1,000 images all the time. Reported is how far the
median wanders (largest minus smallest) and how wide the middle is at the end: with BN the spread
grows while the median stays. Internal covariate shift is shown, it is no pass criterion.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from benchmarks.paper.arms import Arm, Outcome, train
from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.pictures import draw_percentiles
from benchmarks.paper.results import Line
from benchmarks.paper.rows.binary_mnist import SMALL
from bnpass.files import atomic_write
from bnpass.training import TrainConfig

NAME = "figure1"
MINUTES = 2
STEPS = 6_000
UNITS = tuple(range(10))
VALUE = "before:node_sigmoid_2"


def run(ctx: Context) -> list[Line]:
    """One line and the picture."""
    model = MODELS / "mnist_mlp.onnx"
    split = ctx.open("mnist", model, binary=True)
    steps = ctx.steps(STEPS)
    watched = tuple(f"{VALUE}[{unit}]" for unit in UNITS)
    config = TrainConfig(momentum=0.0, schedule="constant", batch_size=60)
    found = []
    for name in ("plain", "BN"):
        arm = Arm(name, model, name == "BN", config, SMALL)
        rate = train(ctx, arm, split, NAME, steps=max(20, steps // 10)).lr
        arm = replace(arm, config=replace(config, watch=watched))
        found.append(train(ctx, arm, split, NAME, steps=steps, lr=rate, validations=5))
        atomic_write(ctx.folder(NAME) / f"percentiles-{name.lower()}.csv",
                     found[-1].history.percentiles_to_csv())
    draw_percentiles(ctx.folder(NAME) / "figure1bc.png", found, watched[0])
    plain, bn = (wander(o) for o in found)
    return [Line(
        f"Figure 1 b, c: travel of the median of {len(UNITS)} pre-activations, {steps} steps",
        f"{plain[0]:.2f} (spread {plain[1]:.2f} at the end)",
        f"{bn[0]:.2f} (spread {bn[1]:.2f} at the end)",
        f"{plain[0] / bn[0]:.1f}x less; {plain[2] / bn[2]:.1f}x less in units of the spread",
        "the picture", None, {"plain": plain, "bn": bn},
    )]


def wander(outcome: Outcome) -> tuple[float, float, float]:
    """Means over the units: travel of the median, final spread, travel over final spread."""
    units: dict[str, list[tuple[float, float, float]]] = {}
    for _step, name, *points in outcome.history.percentiles:
        units.setdefault(name, []).append((points[0], points[1], points[2]))
    travel = {n: max(p[1] for p in ps) - min(p[1] for p in ps) for n, ps in units.items()}
    spread = {n: ps[-1][2] - ps[-1][0] for n, ps in units.items()}
    return (statistics.fmean(travel.values()), statistics.fmean(spread.values()),
            statistics.fmean(travel[n] / max(spread[n], 1e-9) for n in units))
