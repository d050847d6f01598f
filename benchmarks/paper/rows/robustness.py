"""How much the learning rate and the start matter: the share of runs that learn at all.

All runs are the same but for the rate and the start: SGD with momentum 0.5 at a constant rate. A
run that has the accuracy on held-out images after a quarter of the steps ends there.
(From 0.8 on, networks with BN that start from N(0, 0.01) do not learn at a rate of 10.)
"""

from __future__ import annotations

import csv
import io

from benchmarks.paper.arms import Arm, train
from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.results import Line
from bnpass.files import atomic_write
from bnpass.training import TrainConfig

NAME = "robustness"
MINUTES = 7
STEPS = 6_000
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STARTS = {
    "N(0, 0.01)": {"scheme": "gaussian", "std": 0.01},
    "Glorot": {"scheme": "glorot"},
    "4 x Glorot": {"scheme": "glorot", "gain": 4.0},
}
ENOUGH = 0.925
CONFIG = TrainConfig(momentum=0.5, schedule="constant", batch_size=60)
PARTS = ("plain", "BN")

Cell = tuple[str, str, float, float]
"""Arm, start, rate, accuracy on the test images."""


def part(ctx: Context, name: str) -> list[Cell]:
    """All runs of an arm."""
    model = MODELS / "mnist_mlp.onnx"
    split = ctx.open("mnist", model)
    cells = []
    for label, init in STARTS.items():
        for lr in RATES:
            arm = Arm(f"{name} {label} lr {lr:g}", model, name == "BN", CONFIG, init)
            for steps in (STEPS // 4, STEPS):  # the same run, longer if need be
                done = train(ctx, arm, split, NAME, steps=ctx.steps(steps), lr=lr, validations=2)
                if done.validation >= ENOUGH:
                    break
            cells.append((name, label, lr, done.test))
    return cells


def run(ctx: Context, found: dict[str, list[Cell]] | None = None) -> list[Line]:
    """One line; the grid as CSV."""
    rows = [cell for name in PARTS for cell in (found[name] if found else part(ctx, name))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("arm", "start", "lr", "test"), *rows])
    atomic_write(ctx.folder(NAME) / "grid.csv", text.getvalue())
    plain, bn = ([r[3] >= ENOUGH for r in rows if r[0] == arm] for arm in ("plain", "BN"))
    worst = min(r[3] for r in rows if r[0] == "BN")
    return [Line(
        f"MNIST MLP, rates 0.03 to 10 x 3 starts, {ctx.steps(STEPS)} steps: 92.5 % reached",
        f"{sum(plain)}/{len(plain)}", f"{sum(bn)}/{len(bn)}",
        f"worst with BN {100 * worst:.2f} %", "all with BN", all(bn), {"grid": rows},
    )]
