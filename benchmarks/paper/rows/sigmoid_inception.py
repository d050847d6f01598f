"""The analogue of BN-x5-Sigmoid (section 4.2.2): an Inception with sigmoids, on Fashion-MNIST."""

from __future__ import annotations

from benchmarks.paper.arms import Arm, train
from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.nets import with_sigmoids
from benchmarks.paper.pictures import draw
from benchmarks.paper.results import Line, percent
from bnpass.training import TrainConfig

NAME = "sigmoid-inception"
MINUTES = 10
STEPS = 1_200


def run(ctx: Context) -> list[Line]:
    """One line."""
    model = with_sigmoids(MODELS / "inception.onnx")
    split = ctx.open("fashion-mnist", model, validation=2000)
    steps = ctx.steps(STEPS)
    config = TrainConfig(momentum=0.9, schedule="cosine", batch_size=60, channels_last=True)
    plain, bn = (
        train(ctx, Arm(name, model, name == "BN", config, {"scheme": "glorot"}, strip=True), split,
              NAME, steps=steps, validations=12, grid=(0.01, 0.03, 0.1, 0.3, 1.0))
        for name in ("plain", "BN")
    )
    draw(ctx.folder(NAME) / "curves.png", [plain, bn], "Inception with sigmoids, Fashion-MNIST")
    return [Line(
        f"Inception with sigmoids, Fashion-MNIST, {steps} steps",
        f"{percent(plain.test)} (lr {plain.lr:g})", f"{percent(bn.test)} (lr {bn.lr:g})",
        f"{100 * (bn.test - plain.test):+.2f} points", "BN >= 80 %", bn.test >= 0.80,
        {"plain": plain.to_dict(), "bn": bn.to_dict()},
    )]
