"""The arms of the comparison: the same file with and without BN, each at its own learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.errors import RefusedError
from bnpass.pipeline.config import Listener, RunConfig
from bnpass.report.tables import measure

if TYPE_CHECKING:
    import onnx
    from torch import fx

    from bnpass.data import Data, NamedData
    from bnpass.training import History, LrRange, Progress, TrainConfig


@dataclass(frozen=True)
class Trial:
    """A short run at one learning rate.

    Attributes:
        lr: the rate.
        steps: its length.
        merit: validation metric at its end (negative where less is better), or minus the loss;
            -inf where it diverged.
        loss: training loss at its end.
    """

    lr: float
    steps: int
    merit: float
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return {"lr": self.lr, "steps": self.steps, "merit": self.merit, "loss": self.loss}


@dataclass
class Arm:
    """One network and its training.

    Attributes:
        name: shown in tables and curves.
        model: the ONNX model that it starts from.
        gm: the network, trained in place by :func:`train_arm`.
        trials: the short runs of the learning-rate search; empty where the rate was given.
        range: the range test, where that found the rate.
        lr: the rate that it was trained with.
        history: its training.
    """

    name: str
    model: onnx.ModelProto
    gm: fx.GraphModule
    trials: list[Trial] = field(default_factory=list)
    range: LrRange | None = None
    lr: float = 0.0
    history: History | None = None

    def to_dict(self) -> dict[str, Any]:
        """The arm in the report."""
        return {
            "name": self.name, "lr": self.lr, "trials": [t.to_dict() for t in self.trials],
            "history": self.history.to_dict() if self.history else None,
        }


def train_arm(
    arm: Arm, data: Data | NamedData, validation: Data | NamedData, config: RunConfig,
    listener: Listener, out: Path | None = None, resume: bool = False,
) -> History:
    """Choose the arm's learning rate, if there is a grid, and train it.

    Args:
        arm: its ``gm`` is trained.
        data: the training part.
        validation: the held-out part, on which the rate is chosen and accuracy is followed.
        config: of the run.
        listener: is shown the progress.
        out: where metrics.csv and checkpoints go; None writes none.
        resume: go on from the last checkpoint there.

    Raises:
        RefusedError: the loss became no number at every rate.
    """
    from bnpass.training import train
    from bnpass.training.tensorboard import also_to_tensorboard

    settings = config.train
    if config.lr_grid:
        arm.trials = _search(arm, data, validation, config, listener)
        best = max(arm.trials, key=lambda t: (t.merit, -t.loss))
        if not math.isfinite(best.merit):
            raise RefusedError(f"{arm.name}: the loss diverged at every learning rate",
                               "give smaller ones with --lr-grid")
        settings = replace(settings, lr=best.lr)
    elif config.lr_auto:
        arm.range = _tested(arm, data, config, listener)
        settings = replace(settings, lr=arm.range.suggestion)
    arm.lr = settings.lr
    total = settings.total_steps(len(data))
    board = out / "tensorboard" if out is not None and config.tensorboard else None
    with (listener.progress(f"training {arm.name}, lr {arm.lr:g}", total) as bar,
          also_to_tensorboard(lambda p: bar.update(p.step, note(p)), board) as shown):
        arm.history = train(arm.gm, data, validation, settings, out=out, resume=resume,
                            progress=shown)
    if arm.history.stopped == "diverged":
        raise RefusedError(f"{arm.name}: the loss diverged at learning rate {arm.lr:g}",
                           "give a smaller --lr, or several with --lr-grid")
    return arm.history


def _tested(arm: Arm, data: Data | NamedData, config: RunConfig, listener: Listener) -> LrRange:
    from bnpass.training import lr_range_test

    found = lr_range_test(arm.gm, data, config.train)
    listener.log(f"learning rate of {arm.name}: {found.suggestion:.3g}, as a range test suggests")
    return found


def _search(
    arm: Arm, data: Data | NamedData, validation: Data | NamedData, config: RunConfig,
    listener: Listener,
) -> list[Trial]:
    """Short runs from the same start, one a rate, each with the whole of its schedule."""
    from bnpass.training import train

    start = {k: v.clone() for k, v in arm.gm.state_dict().items()}
    steps = config.grid_steps or max(20, config.train.total_steps(len(data)) // 10)
    trials = []
    with listener.progress(f"learning rate of {arm.name}", len(config.lr_grid)) as bar:
        for number, lr in enumerate(config.lr_grid, 1):
            settings = _short(config.train, lr, steps)
            history = train(arm.gm, data, validation, settings)
            arm.gm.load_state_dict(start)
            merit = history.best_score
            lost = history.stopped == "diverged" or merit is None
            trials.append(Trial(lr, steps, -math.inf if lost else float(merit or 0.0),
                                history.rows[-1].loss))
            bar.update(number, f"lr {lr:g}: {'diverged' if lost else f'{merit:.4f}'}")
    return trials


def _short(settings: TrainConfig, lr: float, steps: int) -> TrainConfig:
    return replace(settings, lr=lr, steps=steps, watch=(), eval_every=steps,
                   log_every=max(1, steps // 4), warmup=min(settings.warmup, steps // 5),
                   patience=0, restore_best=False)


def note(progress: Progress) -> str:
    """Loss, metric and speed for the progress display."""
    row = progress.row
    parts = [f"loss {row.loss:.3f}"]
    for name, value in list(row.metrics.items())[:1]:
        parts.append(f"{name} {measure(name, value)}")
    for name, value in list(row.validation.items())[:1]:
        parts.append(f"validation {measure(name, value)}")
    if row.ms_per_step is not None:
        parts.append(f"{row.ms_per_step:.1f} ms/step")
    return "  ".join(parts)
