"""Section 4.2: Inception as it was against BN with the paper's recipe, and the arms between.

Four arms, each with its own learning rate of the same grid: LRN and Dropout as before BN; the same
stripped of both; BN alone; BN with the recipe of section 4.2.1 (no LRN, no Dropout, a fifth of the
weight decay, faster decay of the rate). Half of the gain is the stripping: so all are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.paper.arms import Arm, Outcome, train
from benchmarks.paper.context import MODELS, Context, Split
from benchmarks.paper.pictures import draw
from benchmarks.paper.results import Line, percent, times
from bnpass.training import TrainConfig, paper_recipe

NAME = "inception"
MODEL = MODELS / "inception.onnx"
MINUTES = 12
STEPS = 1_200
GRID = (0.01, 0.03, 0.1, 0.3)
HE = {"scheme": "glorot", "gain": 2**0.5}
BASE = TrainConfig(momentum=0.9, weight_decay=2e-4, schedule="cosine", batch_size=60,
                   channels_last=True)
RECIPE = paper_recipe(BASE, faster=1.0)  # the rate itself comes from the grid, as for all arms


ARMS = {
    "LRN and Dropout": Arm("LRN and Dropout", MODEL, False, BASE, HE),
    "stripped": Arm("stripped", MODEL, False, replace(BASE, dropout=False), HE, strip=True),
    "BN alone": Arm("BN alone", MODEL, True, BASE, HE),
    "BN and recipe": Arm("BN and recipe", MODEL, True, RECIPE, HE, strip=True),
}
PARTS = tuple(ARMS)


def part(ctx: Context, name: str) -> Outcome:
    """One arm, over all steps."""
    return train(ctx, ARMS[name], data(ctx), NAME, steps=ctx.steps(STEPS), grid=GRID,
                 validations=12)


def data(ctx: Context) -> Split:
    """Fashion-MNIST, 2,000 of its training images held out."""
    return ctx.open("fashion-mnist", MODEL, validation=2000)


def run(ctx: Context, found: dict[str, Outcome] | None = None) -> list[Line]:
    """Three lines: the recipe against each other arm."""
    found = found or {name: part(ctx, name) for name in PARTS}
    steps = ctx.steps(STEPS)
    draw(ctx.folder(NAME) / "curves.png", list(found.values()), "Inception on Fashion-MNIST")
    bn = found["BN and recipe"]
    shorter = Shortened(ARMS["BN and recipe"], bn, data(ctx))
    lines = []
    for name, ratios, aim, wanted in (
        ("LRN and Dropout", (6.0, 4.0, 3.0, 2.0), "4x", 4.0),
        ("stripped", (4.0, 3.0, 2.0, 1.5), "2x", 2.0),
        ("BN alone", (3.0, 2.0), "shown", None),
    ):
        other = found[name]
        ratio = shorter.ratio(ctx, other, ratios)
        lines.append(Line(
            f"Inception, Fashion-MNIST, {steps} steps: {name} against BN and recipe",
            f"{percent(other.test)} (lr {other.lr:g})", f"{percent(bn.test)} (lr {bn.lr:g})",
            f"{times(ratio, max(ratios))}; {100 * (bn.test - other.test):+.2f} points", aim,
            None if wanted is None else ratio is not None and ratio >= wanted,
            {"other": other.to_dict(), "bn": bn.to_dict(), "ratio": ratio,
             "shorter": [o.to_dict() for o in shorter.runs.values()]},
        ))
    return lines


@dataclass
class Shortened:
    """BN and recipe in complete schedules of fewer steps, each trained once.

    Attributes:
        arm: what is trained.
        whole: its run over all steps.
        split: the data.
        runs: by length.
    """

    arm: Arm
    whole: Outcome
    split: Split
    runs: dict[int, Outcome] = field(default_factory=dict)

    def ratio(self, ctx: Context, other: Outcome, ratios: Sequence[float]) -> float | None:
        """How many times fewer steps are enough for the other arm's validation accuracy."""
        for ratio in sorted(ratios, reverse=True):
            length = max(20, round(other.steps / ratio))
            if length not in self.runs:
                self.runs[length] = train(ctx, self.arm, self.split, NAME, steps=length,
                                          lr=self.whole.lr)
            if self.runs[length].validation >= other.validation:
                return other.steps / length
        return 1.0 if self.whole.validation >= other.validation else None
