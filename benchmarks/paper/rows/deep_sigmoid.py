"""Ten layers of 100 sigmoids on MNIST: where plain SGD stays at chance, and where it does not.

Chance is what SGD with an ordinary start ends at; Adam trains the plain network, and so does a
start that is 4 times as wide. Both stand beside it.
"""

from __future__ import annotations

from typing import Any

from benchmarks.paper.arms import Arm, mean, slug, train_seeds
from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.pictures import draw
from benchmarks.paper.results import Line, percent
from bnpass.training import TrainConfig

NAME = "deep-sigmoid"
MINUTES = 5
STEPS = 3_000
SGD = TrainConfig(momentum=0.0, schedule="cosine", batch_size=60)
ADAM = TrainConfig(optimizer="adamw", schedule="cosine", batch_size=60)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
CASES: tuple[tuple[str, TrainConfig, dict[str, Any], tuple[float, ...], int, float | None], ...] = (
    ("SGD, Glorot", SGD, {"scheme": "glorot"}, RATES, 2, 0.96),
    ("Adam, Glorot", ADAM, {"scheme": "glorot"}, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), 1, None),
    ("SGD, 4 x Glorot", SGD, {"scheme": "glorot", "gain": 4.0}, RATES, 1, None),
)


def run(ctx: Context) -> list[Line]:
    """One line a case."""
    model = MODELS / "deep_sigmoid_mlp.onnx"
    split = ctx.open("mnist", model)
    steps = ctx.steps(STEPS)
    lines = []
    for label, config, init, grid, seeds, wanted in CASES:
        plain, bn = (
            train_seeds(ctx, Arm(f"{name}, {label}", model, name == "BN", config, init), split,
                        NAME, steps=steps, grid=grid, seeds=seeds)
            for name in ("plain", "BN")
        )
        draw(ctx.folder(NAME) / f"{slug(label)}.png",
             [plain[0], bn[0]], f"10 x 100 sigmoid, {label}")
        reached = mean(bn)
        lines.append(Line(
            f"10 x 100 sigmoid MLP, {label}, {steps} steps",
            f"{percent(mean(plain))} (lr {plain[0].lr:g})",
            f"{percent(reached)} (lr {bn[0].lr:g})",
            f"{100 * (reached - mean(plain)):+.2f} points",
            "BN >= 96 %" if wanted else "shown", None if wanted is None else reached >= wanted,
            {"plain": [o.to_dict() for o in plain], "bn": [o.to_dict() for o in bn]},
        ))
    return lines
