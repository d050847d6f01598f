"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnpass.errors import InputError
from bnpass.files import make_folder
from bnpass.nn import distributed
from bnpass.statistics.torch_engine import calibrate
from bnpass.training.checkpoints import (
    Checkpoint,
    load_checkpoint,
    restore,
    restore_optimizer,
)
from bnpass.training.config import TrainConfig
from bnpass.training.devices import repeatable
from bnpass.training.evaluate import Score
from bnpass.training.history import History, Row
from bnpass.training.identity import fingerprint_of_data, fingerprint_of_network
from bnpass.training.losses import Tally
from bnpass.training.schedules import learning_rate
from bnpass.training.sets import as_samples
from bnpass.training.setup import Setup, prepare
from bnpass.training.step import take_step

log = logging.getLogger("bnpass.training")

_EXPLODED = 100.0
"""Times the loss of the start (and of a network that has learnt nothing): the run has failed."""

STALE = ("checkpoints/last.pt", "checkpoints/best.pt", "percentiles.csv")
"""Files of an earlier run in the same folder that a new one might be taken for."""


@dataclass(frozen=True)
class Progress:
    """What a progress callback gets, at each row of the metrics.

    Attributes:
        step: steps done.
        total: steps of the run.
        row: the metrics' row of this step.
    """

    step: int
    total: int
    row: Row


def train(
    gm: nn.Module,
    train_data: Any,
    validation: Any,
    config: TrainConfig,
    *,
    progress: Callable[[Progress], None] | None = None,
    out: Path | None = None,
    resume: bool = False,
) -> History:
    """Train a network in place.

    Everything random follows from ``config.seed``: two runs on one machine end with equal bits, and
    so does a run that was killed and resumed. Under torchrun the processes share each batch.

    Args:
        gm: the network; it is changed, and left in eval mode on the device that it was on.
        train_data: labelled samples: a :class:`bnpass.data.Data` or
            :class:`bnpass.data.NamedData`, a torch Dataset, a DataLoader, or any iterable of
            batches (inputs, targets); see :mod:`bnpass.data.protocol`.
        validation: labelled samples to judge by, or ``None``.
        config: how to train.
        progress: called at each row of the metrics, in the first process.
        out: folder for metrics.csv and checkpoints/last.pt and best.pt; it is created.
        resume: go on from ``out``/checkpoints/last.pt when that is there.

    Returns:
        The run's metrics. A loss that is no number ends the run: ``stopped == "diverged"``.

    Raises:
        InputError: data or checkpoint do not fit the network.
        UsageError: the settings contradict each other or the machine.
    """
    with ExitStack() as stack:
        stack.enter_context(repeatable(deterministic=config.deterministic))
        held = None if validation is None else as_samples(validation)
        setup = prepare(gm, as_samples(train_data), held, config, stack)
        run = _Loop(gm, setup, config, progress, out)
        start = run.resumed() if resume else 0
        run.begin(start)
        for step, batches in setup.feed.steps(start, setup.total):
            take_step(setup, step, learning_rate(config, step, setup.total), batches, run.tally)
            run.started_with(step)
            if run.due(step + 1) and run.report(step + 1):
                break
    run.finish()
    return run.history


class _Loop:
    """The state of a run between two steps."""

    def __init__(
        self, gm: nn.Module, setup: Setup, config: TrainConfig,
        progress: Callable[[Progress], None] | None, out: Path | None,
    ) -> None:
        self.gm, self.setup, self.config, self.progress = gm, setup, config, progress
        self.folder = out if distributed.rank() == 0 else None
        self.last = None if out is None else out / "checkpoints" / "last.pt"
        self.best = None if out is None else out / "checkpoints" / "best.pt"
        if self.folder is not None:
            make_folder(self.folder / "checkpoints")
        self.history = History(config=config.to_dict(), metrics=self._metric_names())
        self.best_state: dict[str, torch.Tensor] | None = None
        self.waited = 0
        self.started = self.resting = time.perf_counter()
        self.tally = Tally()

    def _metric_names(self) -> tuple[str, ...]:
        return self.setup.goal.names

    def started_with(self, step: int) -> None:
        """Note the first step's loss: what an explosion is measured by."""
        if step == 0:
            self.history.start_loss = self.tally.means()[0]

    @cached_property
    def about(self) -> dict[str, str]:
        """What the run's checkpoints belong to."""
        return {"network": fingerprint_of_network(self.gm),
                "data": fingerprint_of_data(self.setup.feed.data)}

    def begin(self, start: int) -> None:
        """Start metrics.csv with what a resumed run has done; earlier runs leave nothing else."""
        if self.folder is not None:
            for stale in STALE if start == 0 else ():
                (self.folder / stale).unlink(missing_ok=True)
            for half in self.folder.glob("checkpoints/.*.pt.*.tmp"):  # of a run that was killed
                half.unlink(missing_ok=True)
            self.history.write(self.folder)
        self.resting = time.perf_counter()

    def due(self, done: int) -> bool:
        """Whether metrics, a validation or a checkpoint are due behind this step."""
        return done == self.setup.total or any(
            done % every == 0
            for every in (self.setup.log_every, self.setup.eval_every, self.setup.save_every)
        )

    def report(self, done: int) -> bool:
        """Measure, note, save; tell whether to stop."""
        loss, metrics = self.tally.means()
        milliseconds = 1000 * (time.perf_counter() - self.resting) / self.tally.steps
        if not math.isfinite(loss):
            log.warning("the loss is %s after %d steps: stopped; try a lower learning rate",
                        loss, done)
            self.history.stopped = "diverged"
        elif self._exploded(loss):
            log.warning("the loss is %.3g after %d steps, %.3g after the first: stopped; try a "
                        "lower learning rate", loss, done, self.history.start_loss)
            self.history.stopped = "diverged"
        final = done == self.setup.total
        judged = final or done % self.setup.eval_every == 0
        score = self.setup.validate() if judged and self.history.stopped == "done" else None
        if score is not None and not math.isfinite(score.loss):
            log.warning("the validation loss is %s after %d steps: stopped", score.loss, done)
            self.history.stopped = "diverged"
        self._note(done, loss, metrics, score, milliseconds)
        diverged = self.history.stopped == "diverged"  # then the last checkpoint stays a good one
        if score is not None and not diverged and self._judge(done, score):
            self.history.stopped = "patience"
        ended = final or self.history.stopped == "patience"
        if not diverged and (ended or done % self.setup.save_every == 0):
            self._save(done)
        self.tally, self.resting = Tally(), time.perf_counter()
        return self.history.stopped != "done"

    def _exploded(self, loss: float) -> bool:
        """Whether the loss is far above that of the start and of an untrained network."""
        start = abs(self.history.start_loss or 0.0)
        usual = max(start, self.setup.goal.trivial) if self.setup.goal.trivial == \
            self.setup.goal.trivial else 100 * start
        return usual > 0 and loss > _EXPLODED * usual

    def resumed(self) -> int:
        """Take up the last checkpoint; the number of steps that it had done."""
        if self.last is None:
            raise InputError("nothing to resume without an output folder", "give the run's folder")
        if not self.last.is_file():
            return 0
        found = load_checkpoint(self.last, self.config)
        restore(self.gm, found, self.last, self.about)
        restore_optimizer(self.setup.optimizer, self.setup.scaler, found, self.last)
        if self.setup.average is not None:
            self.setup.average.load(found.average)
        self.history, self.waited = found.history, found.waited
        if self.best is not None and self.best.is_file() and self.config.restore_best:
            self.best_state = load_checkpoint(self.best).model
        ended = self.history.stopped != "done"
        return self.setup.total if ended else found.step

    def finish(self) -> None:
        """Leave the network in eval mode, with the best weights if that is wanted."""
        if self.folder is not None:
            self.history.write(self.folder)
        average = self.setup.average
        if average is not None and not (self.config.restore_best and self.best_state is not None):
            average.leave()
            calibrate(self.gm, self.setup.few(), deal=False, warn=False)
            self.history.restored = True
        if self.config.restore_best and self.best_state is not None:
            self.gm.load_state_dict(self.best_state)
            self.history.restored = True
        self.gm.eval()
        distributed.barrier()

    def _note(
        self, done: int, loss: float, metrics: dict[str, float], score: Score | None,
        milliseconds: float,
    ) -> None:
        row = Row(
            step=done,
            epoch=done / (self.setup.feed.per_epoch or math.inf),  # batches that nobody counts
            lr=learning_rate(self.config, done - 1, self.setup.total),
            loss=loss,
            metrics=metrics,
            validation_loss=score.loss if score else None,
            validation=score.metrics if score else {},
            ms_per_step=milliseconds,
            seconds=time.perf_counter() - self.started,
        )
        self.history.rows.append(row)
        if self.setup.watch is not None:
            self.history.percentiles += [(done, *line) for line in self.setup.watch.take()]
        if self.folder is not None:
            self.history.append_last(self.folder)
        if self.progress is not None and distributed.rank() == 0:
            self.progress(Progress(done, self.setup.total, row))

    def _judge(self, done: int, score: Score) -> bool:
        """Keep the best weights; tell whether patience has run out."""
        best = self.history.best_score
        if best is not None and not score.merit > best:
            self.waited += 1
            return bool(self.config.patience) and self.waited >= self.config.patience
        self.history.best_score, self.history.best_step, self.waited = score.merit, done, 0
        if self.config.restore_best:
            self.best_state = self._judged_state()
        if self.folder is not None and self.best is not None:
            replace(self._checkpoint(done), model=self._judged_state()).save(self.best)
        return False

    def _judged_state(self) -> dict[str, torch.Tensor]:
        """The network with the statistics that the last validation was made with."""
        state = {k: v.clone() for k, v in self.gm.state_dict().items()}
        if self.setup.average is not None:
            state |= {k: v.clone() for k, v in self.setup.average.held.items()}
        known = {k: v for k, v in self.setup.judged_with.items() if k in state}
        return {**state, **known}

    def _save(self, done: int) -> None:
        if self.folder is not None and self.last is not None:
            self._checkpoint(done).save(self.last)

    def _checkpoint(self, done: int) -> Checkpoint:
        setup = self.setup
        return Checkpoint(done, self.gm.state_dict(), setup.optimizer.state_dict(),
                          setup.scaler.state_dict(), self.history, self.waited, self.about,
                          setup.average.state() if setup.average is not None else {})
