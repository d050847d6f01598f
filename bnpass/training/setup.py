"""What a training run needs before its first step, made from the network, data and settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bnpass.data import Stream
from bnpass.data.masks import warn_of_padding
from bnpass.data.protocol import Arguments, labelled
from bnpass.data.trees import count
from bnpass.errors import InputError, UsageError
from bnpass.nn import distributed
from bnpass.nn.calls import takes_of
from bnpass.nn.norms import (
    Renormalise,
    across_processes,
    batch_norms,
    by_ghost_batches,
    by_what_counts,
    freeze,
    frozen,
    normalising_with,
    statistics,
    statistics_kept,
)
from bnpass.statistics.torch_engine import NotFiniteError, calibrate
from bnpass.training.average import WeightAverage
from bnpass.training.config import TrainConfig
from bnpass.training.devices import autocast, pick_device
from bnpass.training.evaluate import Score, in_eval_mode, score
from bnpass.training.feed import Feed, Reader, Samples, run, samples_of
from bnpass.training.losses import Objective, objective
from bnpass.training.optimizers import make_optimizer
from bnpass.training.outputs import output_names, outputs_by_name
from bnpass.training.sets import labels_of
from bnpass.training.watch import Watch

log = logging.getLogger("bnpass.training")

_STATISTICS_SAMPLES = 1000
_SMALL = 8  # samples times positions


@dataclass
class Setup:
    """The parts of a run.

    Attributes:
        model: what a batch is sent through: the objective's module, compiled or under DDP.
        goal: the loss and what counts as right.
        feed: training batches.
        optimizer, scaler: torch's own.
        device: where it runs.
        total, log_every, eval_every, save_every: steps.
        judged_with: the statistics that the last validation was made with.
        renorm: what normalises, where that is batch renormalisation.
        average: of the weights, where one is kept.
        own_loss: whether the loss is people's own.
        told: whether outputs without a gradient have been looked for.
    """

    gm: nn.Module
    model: nn.Module
    goal: Objective
    feed: Feed
    validation: Samples | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    config: TrainConfig
    total: int
    log_every: int
    eval_every: int
    save_every: int
    watch: Watch | None
    judged_with: dict[str, torch.Tensor] = field(default_factory=dict)
    own_loss: bool = False
    renorm: Renormalise | None = None
    average: WeightAverage | None = None
    told: bool = False

    def gradients_to_watch(self, outputs: Any) -> dict[str, torch.Tensor]:
        """Outputs by name whose gradients are to be looked at: once, with people's own loss."""
        if self.told or not self.own_loss:
            return {}
        found = outputs_by_name(outputs, output_names(self.gm))
        found = {name: value for name, value in found.items() if value.requires_grad}
        for value in found.values():
            value.retain_grad()
        return found

    def say_untrained(self, watched: dict[str, torch.Tensor]) -> None:
        """Warn of outputs that the loss does not look at."""
        if not watched:
            return
        self.told = True
        left = [name for name, value in watched.items() if value.grad is None]
        if left and distributed.rank() == 0:
            log.warning("output %s gets no gradient: %s does not look at it, and what leads to it "
                        "alone stays untrained", ", ".join(left), self.config.loss)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def syncing(self, *, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients only behind the last micro-batch of a step."""
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def few(self) -> Any:
        """Training samples to take statistics from, the same each time."""
        return _few(self.feed.data, self.config, self.gm)

    def validate(self) -> Score | None:
        """Loss and accuracy on the validation data; weights and statistics stay as they are."""
        if self.validation is None:
            return None
        calibrated = self.config.validate_with == "calibrated" and not self.config.freeze_bn
        self.judged_with = {}
        modes = [(part, part.training) for part in self.gm.modules()]
        averaged = self.average.in_place() if self.average is not None else nullcontext()
        with (statistics_kept(self.gm), averaged,
              autocast(self.device, self.config.precision)):
            try:
                if calibrated or self.average is not None:
                    calibrate(self.gm, self.few(), deal=False, warn=False)
                result = score(self.goal, self.validation, self.device, gm=self.gm,
                               precision=self.config.precision,
                               channels_last=self.config.channels_last)
                self.judged_with = statistics(self.gm)
            except NotFiniteError:  # the weights have left the range of their type
                result = Score(math.nan)
        for part, mode in modes:
            part.training = mode
        return result


def prepare(
    gm: nn.Module, data: Samples, validation: Samples | None, config: TrainConfig,
    stack: ExitStack,
) -> Setup:
    """Make the parts of a run; ``stack`` undoes at its end what was done to the network.

    Raises:
        InputError: data and network do not fit.
        UsageError: settings that contradict each other or the machine.
    """
    distributed.join(config.device)
    device = pick_device(config.device)
    with autocast(device, config.precision):  # refuses what the device cannot do
        pass
    _check_sizes(gm, data, config)
    _move(gm, device, config, stack)
    feed = Feed(data, config, device, gm=gm)
    goal = _objective(gm, data, validation, config, feed.reader)
    total = feed.total()
    renorm = _into_training(gm, config, stack, total)
    _into_masked(gm, config, stack, feed)
    _say_small(gm, feed, config)
    optimizer = _optimizer(goal.module, config)
    eval_every = config.eval_every or max(1, total // 10)
    return Setup(
        gm=gm, model=_wrapped(goal, device, config), goal=goal, feed=feed,
        validation=validation if validation is None or isinstance(validation, Stream)
        else validation.cached(),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        device=device, config=config, total=total,
        log_every=config.log_every or max(1, total // 100), eval_every=eval_every,
        save_every=config.checkpoint_every or eval_every,
        watch=_watch(gm, validation or data, device, config), own_loss=is_own(config.loss),
        renorm=renorm, average=WeightAverage(gm, config.ema) if config.ema else None,
    )


def _objective(
    gm: nn.Module, data: Samples, validation: Samples | None, config: TrainConfig, reader: Reader
) -> Objective:
    """What is trained for; the validation's targets must fit the same."""
    example, _ = reader.example()
    call = example if isinstance(example, Arguments) else Arguments((example,))
    reader.feeder.settle(lambda c: _tried(gm, c), call)
    example, _ = reader.example()

    def make(samples: Samples, reader: Reader, where: str) -> Objective:
        return objective(gm, labels_of(samples, reader), example, loss=config.loss,
                         metric=config.metric, label_smoothing=config.label_smoothing,
                         ignore_index=config.ignore_index, where=where)

    goal = make(data, reader, "training data")
    if validation is not None and not is_own(config.loss):
        with quiet(log):  # what is said of the outputs was said once
            make(validation, Reader(validation, reader.device, gm), "validation data")
    return goal


def _tried(gm: nn.Module, call: Arguments) -> None:
    with torch.no_grad(), in_eval_mode(gm):
        gm(*call.args, **call.kwargs)


def _check_sizes(gm: nn.Module, data: Samples, config: TrainConfig) -> None:
    if isinstance(data, Stream):
        return
    if len(data) == 0:
        raise InputError("no training data", "the data set is empty")
    parts = distributed.world() * config.accumulate
    normed = bool(batch_norms(gm)) and not config.freeze_bn
    if min(config.batch_size, len(data)) < parts * (2 if normed else 1):
        raise UsageError(
            f"batch size {config.batch_size} of {len(data)} samples in {parts} parts",
            "each process and micro-batch needs a sample, and 2 or more for BN")


def _move(
    gm: nn.Module, device: torch.device, config: TrainConfig, stack: ExitStack
) -> None:
    home = next((p.device for p in gm.parameters()), torch.device("cpu"))
    gm.to(device)
    stack.callback(gm.to, home)
    if config.channels_last:
        _set_format(gm, torch.channels_last)
        stack.callback(_set_format, gm, torch.contiguous_format)


def _set_format(gm: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in gm.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _say_small(gm: nn.Module, feed: Feed, config: TrainConfig) -> None:
    """Warn where a BN normalises over so few elements that its statistics are mostly noise."""
    live = [norm for norm in batch_norms(gm).values() if norm.training]
    if not live or config.norm == "renorm" or isinstance(feed.data, Stream):
        return
    example = feed.reader.example()
    seen: list[int] = []
    hooks = [norm.register_forward_pre_hook(lambda _, args: seen.append(
        args[0].numel() // max(1, args[0].shape[1]))) for norm in live]
    try:
        with torch.no_grad(), in_eval_mode(gm):
            run(gm, example[0])
    finally:
        for hook in hooks:
            hook.remove()
    together = config.virtual_batch or max(1, feed.batch // config.accumulate)
    fewest = min(seen, default=_SMALL * 99) * together // samples_of(example)
    if fewest < _SMALL and distributed.rank() == 0:
        log.warning("a BatchNorm normalises over %d elements a channel in each step, whose mean "
                    "and variance are mostly noise: larger batches, several processes "
                    "(synchronised BN) or --norm renorm help; smaller ghost batches do not", fewest)


def _into_training(
    gm: nn.Module, config: TrainConfig, stack: ExitStack, total: int
) -> Renormalise | None:
    """Training mode, but for what the user froze; BN as the settings want it."""
    if config.freeze_bn:
        freeze(gm)
    kept = frozen(gm)
    gm.train()
    norms = batch_norms(gm)
    for name in kept:
        norms[name].eval()
    if not config.dropout:
        for module in gm.modules():
            if "Dropout" in type(module).__name__:
                module.eval()
    live = [norm for name, norm in norms.items() if name not in kept]
    if config.norm == "renorm":
        if distributed.world() > 1:
            raise UsageError("renorm in several processes", "each would correct towards its own "
                             "statistics: leave it out, BN is synchronised here")
        renorm = Renormalise(total)
        stack.enter_context(normalising_with(live, renorm))
        return renorm
    if config.virtual_batch:
        stack.enter_context(normalising_with(live, by_ghost_batches(config.virtual_batch)))
    elif distributed.world() > 1:
        stack.enter_context(normalising_with(live, across_processes))
    return None


def _into_masked(gm: nn.Module, config: TrainConfig, stack: ExitStack, feed: Feed) -> None:
    """BN over what the data's mask says; without one, a warning where there is padding."""
    live = [norm for norm in batch_norms(gm).values() if norm.training]

    def example(size: int) -> Arguments:
        found = feed.reader.example(size)[0]
        return found if isinstance(found, Arguments) else Arguments((found,))

    if example(2).mask is None:
        if live and distributed.rank() == 0:
            warn_of_padding(example)
        return
    if config.norm == "renorm" or config.virtual_batch or distributed.world() > 1:
        raise UsageError("a mask with batch renormalisation, ghost batches or several processes",
                         "train with plain BN in one process, or without the mask")
    stack.enter_context(normalising_with(live, by_what_counts))


def _optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError("the network has no parameters to train", "check what was frozen")
    return make_optimizer(module, config)


def _wrapped(goal: Objective, device: torch.device, config: TrainConfig) -> nn.Module:
    model: nn.Module = goal.module
    if config.compile:
        model = torch.compile(goal.module)  # type: ignore[assignment]
    if distributed.world() > 1:
        ids = [device.index] if device.type == "cuda" else None
        traced = isinstance(goal.module, fx.GraphModule) and not is_own(config.loss)
        model = nn.parallel.DistributedDataParallel(
            model, device_ids=ids, broadcast_buffers=False, find_unused_parameters=not traced)
    return model


def _watch(
    gm: nn.Module, data: Samples, device: torch.device, config: TrainConfig
) -> Watch | None:
    if not config.watch:
        return None
    if isinstance(data, Stream):
        samples, _ = Reader(data, device, gm).example(_STATISTICS_SAMPLES)
    else:
        few = _few(data, config, gm)
        samples, _ = Reader(few, device, gm).pair(np.arange(len(few)))
    return Watch(gm, config.watch, samples)


def _few(data: Samples, config: TrainConfig, gm: nn.Module) -> Any:
    """The same samples each time, from all over the set: files often hold class after class.

    Of batches of people's own the first ones.
    """
    if not isinstance(data, Stream):
        order = np.random.default_rng((config.seed, 0xF3)).permutation(len(data))
        return data.subset(np.sort(order[:_STATISTICS_SAMPLES]))
    takes = takes_of(gm)
    found: list[Arguments] = []
    seen = 0
    for item in [data.peek()] if data.once else data:
        found.append(labelled(item, takes)[0])
        seen += count((found[-1].args, found[-1].kwargs)) or 1
        if seen >= _STATISTICS_SAMPLES:
            break
    return found


def is_own(loss: str) -> bool:
    """Whether a loss is people's own, by its name."""
    return ":" in loss.split("=", maxsplit=1)[0]


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Nothing from this logger for a while."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
