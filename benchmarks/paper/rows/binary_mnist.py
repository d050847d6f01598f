"""Section 4.1: how many fewer steps BN needs to the accuracy that the plain network ends with.

The paper's network, 784-100-100-100-10 with sigmoids, on black and white MNIST in batches of 60 for
50,000 steps. Both arms get the same initialisation, a decaying schedule and their own learning rate
of the same grid. BN is then trained in complete schedules that are shorter and shorter: the ratio
is that of the shortest one which ends, on the mean of its seeds, at least as good on held-out
training images as the plain network's 50,000 steps (mean of its seeds too).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.paper.arms import Arm, Outcome, mean, shortest, slug, steps_to, train, train_seeds
from benchmarks.paper.context import MODELS, Context, Split
from benchmarks.paper.pictures import draw
from benchmarks.paper.results import Line, percent, times
from bnpass.training import TrainConfig

NAME = "binary-mnist"
MODEL = MODELS / "mnist_mlp.onnx"
CONFIG = TrainConfig(momentum=0.9, schedule="cosine", batch_size=60)
MINUTES = 10
STEPS = 50_000
FINE = (40.0, 28.0, 20.0, 17.0, 14.0, 12.0, 10.0, 7.0, 5.0, 3.0, 2.0)
SMALL = {"scheme": "gaussian", "std": 0.01}
GLOROT = {"scheme": "glorot", "gain": 1.0}


@dataclass(frozen=True)
class Start:
    """An initialisation for each arm, and what is expected of the comparison.

    Attributes:
        label: in the table.
        plain, bn: keywords of :func:`bnpass.training.initialize`.
        aim, wanted: of the ratio.
        ratios: how many times fewer steps to try.
        seeds: of the plain network, and of every shortened run.
        part: what share of all steps the long run with BN gets, 1 / part.
    """

    label: str
    plain: dict[str, Any]
    bn: dict[str, Any]
    aim: str
    wanted: float | None = None
    ratios: tuple[float, ...] = FINE
    seeds: int = 2
    part: int = 1


STARTS = (
    Start("N(0, 0.01) in both arms", SMALL, SMALL, ">= 14x", 14.0, part=10),
    Start("N(0, 0.01) plain, Glorot under BN", SMALL, GLOROT, "shown", part=10),
)


PARTS = ("plain", "BN")


def part(ctx: Context, name: str) -> list[Outcome]:
    """An arm of the first start over all steps."""
    return long_run(ctx, STARTS[0], name, NAME)


def run(ctx: Context, found: dict[str, list[Outcome]] | None = None) -> list[Line]:
    """One line a start."""
    plain, bn = (found[name] if found else part(ctx, name) for name in PARTS)
    glorot = long_run(ctx, STARTS[1], "BN", NAME)
    return [compare(ctx, STARTS[0], plain, bn, NAME), compare(ctx, STARTS[1], plain, glorot, NAME)]


def long_run(ctx: Context, start: Start, name: str, row: str) -> list[Outcome]:
    """``"plain"`` with all its seeds, or ``"BN"`` once."""
    if name == "plain":
        return train_seeds(ctx, _arm(start, name), data(ctx), row, steps=ctx.steps(STEPS),
                           seeds=start.seeds, validations=50)
    steps = ctx.steps(STEPS)
    return [train(ctx, _arm(start, name), data(ctx), row, steps=max(20, steps // start.part),
                  grid_steps=max(20, steps // 10), validations=50)]


def data(ctx: Context) -> Split:
    """MNIST in black and white."""
    return ctx.open("mnist", MODEL, binary=True)


def _arm(start: Start, name: str) -> Arm:
    init = start.bn if name == "BN" else start.plain
    return Arm(f"{name} {start.label}", MODEL, name == "BN", CONFIG, init)


def compare(
    ctx: Context, start: Start, plain: list[Outcome], bn: list[Outcome], row: str
) -> Line:
    """How many times fewer steps BN needs to the plain network's accuracy."""
    full, whole, arm = ctx.steps(STEPS), bn[0], _arm(start, "BN")
    target = mean(plain, "validation")
    ratio, runs = shortest(ctx, arm, data(ctx), row, full=full, target=target, lr=whole.lr,
                           ratios=start.ratios, seeds=start.seeds)
    if ratio is None and whole.steps == full and whole.validation >= target:
        ratio = 1.0
    best = runs[-1]
    draw(ctx.folder(row) / f"{slug(arm.label)}.png", [plain[0], whole, best[0]],
         "section 4.1, binary MNIST")
    words = times(ratio, max(full / r[0].steps for r in runs))
    after = f" after {whole.steps}" if start.part > 1 else ""
    return Line(
        f"4.1 binary MNIST, {start.label}, {full} steps",
        f"{percent(mean(plain))} (lr {plain[0].lr:g}, {len(plain)} seeds)",
        f"{percent(mean(best))} after {best[0].steps}, {percent(whole.test)} after {whole.steps} "
        f"(lr {whole.lr:g})",
        f"{words}; {100 * (whole.test - mean(plain)):+.2f} points{after}", start.aim,
        None if start.wanted is None else ratio is not None and ratio >= start.wanted,
        {"target": target, "ratio": ratio, "crossing_in_the_long_run": steps_to(whole, target),
         "plain": [o.to_dict() for o in plain], "bn": whole.to_dict(),
         "shorter": [[o.to_dict() for o in group] for group in runs]},
    )
