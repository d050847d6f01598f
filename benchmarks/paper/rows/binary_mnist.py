"""Section 4.1: how many fewer steps BN needs to the accuracy that the plain network ends with.

The paper's network, 784-100-100-100-10 with sigmoids, on black and white MNIST in batches of 60 for
50,000 steps. Both arms get the same initialisation, a decaying schedule and their own learning rate
of the same grid. BN is then trained in complete schedules that are shorter and shorter: the ratio
is that of the shortest one which ends, on the mean of its seeds, at least as good on held-out
training images as the plain network's 50,000 steps. Besides the paper's small Gaussian start stands
the start under which the plain network is at its best (4 times Glorot).
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
MINUTES = 22
STEPS = 50_000
RATIOS = (40.0, 28.0, 20.0, 17.0, 14.0, 12.0, 10.0, 7.0, 5.0, 3.0, 2.0)
SMALL = {"scheme": "gaussian", "std": 0.01}
GLOROT = {"scheme": "glorot", "gain": 1.0}
LARGE = {"scheme": "glorot", "gain": 4.0}


@dataclass(frozen=True)
class Start:
    """An initialisation for each arm, and what is expected of the comparison."""

    label: str
    plain: dict[str, Any]
    bn: dict[str, Any]
    aim: str = ""
    wanted: float | None = None


STARTS = (
    Start("N(0, 0.01) in both arms", SMALL, SMALL, ">= 14x", 14.0),
    Start("N(0, 0.01) plain, Glorot under BN", SMALL, GLOROT, "floor 10x"),
    Start("4 x Glorot in both arms", LARGE, LARGE, "reported always"),
)


def run(ctx: Context) -> list[Line]:
    """One line a start."""
    model = MODELS / "mnist_mlp.onnx"
    split = ctx.open("mnist", model, binary=True)
    config = TrainConfig(momentum=0.9, schedule="cosine", batch_size=60)
    plain: dict[str, list[Outcome]] = {}
    lines = []
    for start in STARTS:
        key = str(start.plain)
        if key not in plain:
            arm = Arm(f"plain {start.label.split(' in ')[0]}", model, False, config, start.plain)
            plain[key] = train_seeds(ctx, arm, split, NAME, steps=ctx.steps(STEPS),
                                     validations=100)
        lines.append(_compare(ctx, start, plain[key], Arm(f"BN {start.label}", model, True, config,
                                                          start.bn), split))
    return lines


def _compare(ctx: Context, start: Start, plain: list[Outcome], arm: Arm, split: Split) -> Line:
    full = ctx.steps(STEPS)
    target = mean(plain, "validation")
    whole = train(ctx, arm, split, NAME, steps=full, validations=100)
    ratio, runs = shortest(ctx, arm, split, NAME, full=full, target=target, lr=whole.lr,
                           ratios=RATIOS)
    best = runs[-1]
    draw(ctx.folder(NAME) / f"{slug(arm.label)}.png", [plain[0], whole, best[0]],
         "section 4.1, binary MNIST")
    words = times(ratio, max(full / r[0].steps for r in runs))
    crossing = steps_to(whole, target)
    return Line(
        f"4.1 binary MNIST, {start.label}, {full} steps",
        f"{percent(mean(plain))} (lr {plain[0].lr:g}, {len(plain)} seeds)",
        f"{percent(mean(best))} after {best[0].steps}, {percent(whole.test)} after {full}",
        f"{words}; {100 * (whole.test - mean(plain)):+.2f} points", start.aim,
        None if start.wanted is None else ratio is not None and ratio >= start.wanted,
        {"target": target, "ratio": ratio, "crossing_in_the_full_run": crossing,
         "plain": [o.to_dict() for o in plain], "bn": whole.to_dict(),
         "shorter": [[o.to_dict() for o in group] for group in runs]},
    )
