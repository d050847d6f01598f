"""Section 4.2.3: six networks with BN, their probabilities averaged, on Fashion-MNIST."""

from __future__ import annotations

import numpy as np

from benchmarks.paper.arms import Arm, train
from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.results import Line, percent
from benchmarks.paper.rows.inception import GRID, HE, RECIPE
from bnpass.pipeline.measure import deployed_outputs

NAME = "ensemble"
MINUTES = 4
STEPS = 200
MEMBERS = 6


def run(ctx: Context) -> list[Line]:
    """One line; the members differ in start and order, and every one is a folded file."""
    model = MODELS / "inception.onnx"
    split = ctx.open("fashion-mnist", model, validation=2000)
    steps = ctx.steps(STEPS)
    arm = Arm("member", model, True, RECIPE, HE, strip=True)
    members = []
    for seed in range(MEMBERS):
        lr = members[0].lr if members else None
        members.append(train(ctx, arm, split, NAME, steps=steps, seed=seed, lr=lr,
                             grid=GRID, validations=1))
    kept = [m for m in members if m.deploy is not None]
    votes = sum(probabilities(deployed_outputs(m.deploy, split.test)) for m in kept)
    labels = split.test.labels
    together = float(np.mean(np.argmax(votes, axis=1) == labels))
    alone = float(np.mean([m.test for m in kept]))
    best = max(m.test for m in kept)
    return [Line(
        f"ensemble of {len(kept)} Inceptions with BN, Fashion-MNIST, {steps} steps each",
        "", f"alone {percent(alone)}, the best {percent(best)}",
        f"together {percent(together)} ({100 * (together - alone):+.2f} points)", "the row", None,
        {"members": [m.to_dict() for m in members], "together": together},
    )]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax along axis 1, ``(n, classes)``."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
