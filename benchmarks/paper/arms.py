"""One arm of an experiment: an ONNX file, with BN or without, trained, folded and measured.

Every step is one that people call: bnpass.strip, bnpass.insert, bnpass.to_torch, initialize, train,
calibrate, bnpass.write_back, bnpass.fold (which verifies), and onnxruntime for the accuracy.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bnpass
from benchmarks.paper.context import Context, Split, some
from bnpass.errors import RefusedError
from bnpass.files import atomic_write, save_model
from bnpass.pipeline import RunConfig
from bnpass.pipeline.arms import Arm as Trained
from bnpass.pipeline.arms import train_arm
from bnpass.pipeline.measure import accuracy_of, deployed_outputs
from bnpass.training import History, TrainConfig, calibrate, initialize

GRID = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates that each arm chooses from; the same for all arms of an experiment."""

STATISTICS = 10_000
"""Training images over which the population statistics are taken."""


@dataclass(frozen=True)
class Arm:
    """What is trained, and how.

    Attributes:
        label: in tables and pictures.
        model: an ONNX model or the path of one, without BN.
        bn: insert BN.
        config: all but the learning rate, the steps and the seed.
        init: keywords of :func:`bnpass.training.initialize`.
        strip: take LRN and Dropout out.
    """

    label: str
    model: Any
    bn: bool
    config: TrainConfig
    init: dict[str, Any] = field(default_factory=dict)
    strip: bool = False


@dataclass(frozen=True)
class Outcome:
    """One finished training.

    Attributes:
        label, seed, lr, steps: what was trained.
        validation: accuracy at the end on the held-out training images.
        test: accuracy of the deployed file on onnxruntime on the test images.
        trials: ``(rate, validation accuracy)`` of the learning-rate search, empty for later seeds.
        history: the run.
        seconds: what all of it took.
        deploy: the folded model.
    """

    label: str
    seed: int
    lr: float
    steps: int
    validation: float
    test: float
    trials: tuple[tuple[float, float], ...]
    history: History
    seconds: float
    deploy: Any = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """What the JSON table keeps of it."""
        return {"label": self.label, "seed": self.seed, "lr": self.lr, "steps": self.steps,
                "validation": self.validation, "test": self.test,
                "trials": [list(t) for t in self.trials], "seconds": round(self.seconds, 1)}


def build(arm: Arm) -> Any:
    """The arm's ONNX model."""
    model = bnpass.strip(arm.model) if arm.strip else arm.model
    return bnpass.insert(model) if arm.bn else _loaded(model)


def _loaded(model: Any) -> Any:
    from bnpass.files import load_model

    return load_model(model)


def train(
    ctx: Context, arm: Arm, split: Split, row: str, *, steps: int, seed: int = 0,
    lr: float | None = None, grid: Sequence[float] = GRID, grid_steps: int = 0,
    validations: int = 20,
) -> Outcome:
    """Train an arm from its start to its folded, verified and measured file.

    Args:
        ctx: the call's settings.
        arm: what to train.
        split: the data.
        row: the experiment; names the folder.
        steps: of the run, scaled already.
        seed: of weights and order.
        lr: the rate; without it the best of ``grid`` on the validation part, each tried in a
            complete schedule over a tenth of the steps.
        grid: the rates to try.
        grid_steps: of each try, where it is not a tenth of ``steps``.
        validations: points of the curve.
    """
    start = time.perf_counter()
    model = build(arm)
    trained = Trained(arm.label, model, bnpass.to_torch(model))
    if arm.init:
        initialize(trained.gm, seed=seed, **arm.init)
    config = replace(arm.config, steps=steps, seed=seed, lr=lr or 1.0, device="cpu",
                     eval_every=max(1, steps // ctx.points(validations)),
                     log_every=max(1, steps // 100))
    rates = () if lr is not None else ctx.grid(grid)
    run = RunConfig(config, lr_grid=rates, grid_steps=grid_steps or max(20, steps // 10))
    try:
        history = train_arm(trained, split.train, split.validation, run, ctx.ui)
    except RefusedError:
        history = trained.history or History(stopped="diverged")
    outcome = _measured(trained, arm, split, history, seed, steps, start, ctx.images // 4)
    _keep(ctx.folder(row), outcome)
    ctx.log(f"{arm.label}, {steps} steps, seed {seed}, lr {outcome.lr:g}: "
            f"test {outcome.test:.4f} ({outcome.seconds:.0f} s)")
    return outcome


def _measured(
    trained: Trained, arm: Arm, split: Split, history: History, seed: int, steps: int,
    start: float, few: int,
) -> Outcome:
    trials = tuple((t.lr, t.merit) for t in trained.trials)
    if history.stopped == "diverged":
        return Outcome(arm.label, seed, trained.lr, steps, 0.0, 0.0, trials, history,
                       time.perf_counter() - start, None)
    if arm.bn:
        calibrate(trained.gm, some(split.train, few or STATISTICS), seed=seed)
    deploy = bnpass.fold(bnpass.write_back(trained.gm, trained.model))
    outputs = deployed_outputs(deploy, split.test)
    test = accuracy_of(outputs, split.test, trained.gm, arm.config.loss)
    return Outcome(arm.label, seed, trained.lr, steps, history.accuracy or 0.0, test or 0.0,
                   trials, history, time.perf_counter() - start, deploy)


def file_name(outcome: Outcome) -> str:
    """A file name that tells the run."""
    return f"{slug(outcome.label)}-{outcome.steps}-seed{outcome.seed}"


def slug(label: str) -> str:
    """A label as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def _keep(folder: Path, outcome: Outcome) -> None:
    atomic_write(folder / f"{file_name(outcome)}.csv", outcome.history.to_csv())
    if outcome.seed == 0 and outcome.deploy is not None:
        save_model(outcome.deploy, folder / f"{file_name(outcome)}.onnx", force=True)


def train_seeds(
    ctx: Context, arm: Arm, split: Split, row: str, *, steps: int, seeds: int = 3,
    lr: float | None = None, grid: Sequence[float] = GRID, validations: int = 20,
) -> list[Outcome]:
    """The arm with several seeds; the first one chooses the learning rate."""
    found: list[Outcome] = []
    for seed in ctx.seed_list(seeds):
        found.append(train(ctx, arm, split, row, steps=steps, seed=seed, lr=lr, grid=grid,
                           validations=validations))
        lr = found[0].lr
    return found


def mean(outcomes: Sequence[Outcome], of: str = "test") -> float:
    """The mean over the seeds."""
    return statistics.fmean(getattr(o, of) for o in outcomes)


def steps_to(outcome: Outcome, accuracy: float) -> int | None:
    """The first validated step of a run with this validation accuracy, or ``None``."""
    return next((r.step for r in outcome.history.validations
                 if (r.validation_accuracy or 0.0) >= accuracy), None)


def shortest(
    ctx: Context, arm: Arm, split: Split, row: str, *, full: int, target: float, lr: float,
    ratios: Sequence[float], seeds: int = 2,
) -> tuple[float | None, list[list[Outcome]]]:
    """The shortest complete schedule with which an arm reaches a validation accuracy.

    Args:
        ctx, arm, split, row, lr: as for :func:`train`.
        full: steps of the run that is compared with.
        target: the accuracy, a mean over the seeds.
        ratios: how many times shorter to try, from the shortest run on; the first success ends it.
        seeds: runs for each length.

    Returns:
        The ratio that reached it, or ``None``; and all runs.
    """
    runs = []
    for ratio in sorted(ratios, reverse=True):
        steps = max(20, round(full / ratio))
        runs.append(train_seeds(ctx, arm, split, row, steps=steps, seeds=seeds, lr=lr))
        if mean(runs[-1], "validation") >= target:
            return full / steps, runs
    return None, runs
