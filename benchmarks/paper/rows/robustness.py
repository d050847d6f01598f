"""How much the learning rate and the start matter: the share of runs that learn at all."""

from __future__ import annotations

import csv
import io

from benchmarks.paper.arms import Arm, train
from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.results import Line
from bnpass.files import atomic_write
from bnpass.training import TrainConfig

NAME = "robustness"
MINUTES = 4
STEPS = 3_000
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STARTS = {
    "N(0, 0.01)": {"scheme": "gaussian", "std": 0.01},
    "Glorot": {"scheme": "glorot"},
    "4 x Glorot": {"scheme": "glorot", "gain": 4.0},
}
ENOUGH = 0.925


def run(ctx: Context) -> list[Line]:
    """One line; the grid as CSV."""
    model = MODELS / "mnist_mlp.onnx"
    split = ctx.open("mnist", model)
    steps = ctx.steps(STEPS)
    config = TrainConfig(momentum=0.0, schedule="constant", batch_size=60)
    rows = [
        (arm, name, lr, train(ctx, Arm(f"{arm} {name} lr {lr:g}", model, arm == "BN", config, init),
                              split, NAME, steps=steps, lr=lr, validations=2).test)
        for arm in ("plain", "BN") for name, init in STARTS.items() for lr in RATES
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("arm", "start", "lr", "test"), *rows])
    atomic_write(ctx.folder(NAME) / "grid.csv", text.getvalue())
    plain, bn = ([r[3] >= ENOUGH for r in rows if r[0] == arm] for arm in ("plain", "BN"))
    worst = min(r[3] for r in rows if r[0] == "BN")
    return [Line(
        f"MNIST MLP, rates 0.03 to 10 x 3 starts, {steps} steps: runs with 92.5 % or more",
        f"{sum(plain)}/{len(plain)}", f"{sum(bn)}/{len(bn)}",
        f"worst with BN {100 * worst:.2f} %", "all with BN", all(bn), {"grid": rows},
    )]
