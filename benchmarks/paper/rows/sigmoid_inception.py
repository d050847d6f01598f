"""The analogue of BN-x5-Sigmoid (section 4.2.2): an Inception with sigmoids, on Fashion-MNIST."""

from __future__ import annotations

from benchmarks.paper.arms import Arm, Outcome, train
from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.nets import with_sigmoids
from benchmarks.paper.pictures import draw
from benchmarks.paper.results import Line, percent
from bnpass.training import TrainConfig

NAME = "sigmoid-inception"
MINUTES = 6
STEPS = 1_200
GRID = (0.03, 0.1, 0.3, 1.0)
CONFIG = TrainConfig(momentum=0.9, schedule="cosine", batch_size=60, channels_last=True)
PARTS = ("plain", "BN")


def part(ctx: Context, name: str) -> Outcome:
    """One arm."""
    model = with_sigmoids(MODELS / "inception.onnx")
    split = ctx.open("fashion-mnist", model, validation=2000)
    arm = Arm(name, model, name == "BN", CONFIG, {"scheme": "glorot"}, strip=True)
    return train(ctx, arm, split, NAME, steps=ctx.steps(STEPS), validations=6, grid=GRID)


def run(ctx: Context, found: dict[str, Outcome] | None = None) -> list[Line]:
    """One line."""
    plain, bn = (found[name] if found else part(ctx, name) for name in PARTS)
    draw(ctx.folder(NAME) / "curves.png", [plain, bn], "Inception with sigmoids, Fashion-MNIST")
    return [Line(
        f"Inception with sigmoids, Fashion-MNIST, {plain.steps} steps",
        f"{percent(plain.test)} (lr {plain.lr:g})", f"{percent(bn.test)} (lr {bn.lr:g})",
        f"{100 * (bn.test - plain.test):+.2f} points", "BN >= 80 %", bn.test >= 0.80,
        {"plain": plain.to_dict(), "bn": bn.to_dict()},
    )]
