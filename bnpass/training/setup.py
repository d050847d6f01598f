"""What a training run needs before its first step, made from the network, data and settings."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from bnpass.data.dataset import Data
from bnpass.errors import InputError, UsageError
from bnpass.nn import distributed
from bnpass.nn.norms import (
    across_processes,
    batch_norms,
    by_ghost_batches,
    freeze,
    frozen,
    normalising_with,
    statistics_kept,
)
from bnpass.statistics.torch_engine import NotFiniteError, calibrate
from bnpass.training.config import TrainConfig
from bnpass.training.devices import autocast, pick_device
from bnpass.training.evaluate import Score, score
from bnpass.training.feed import Feed, to_tensors
from bnpass.training.losses import Objective, objective
from bnpass.training.optimizers import make_optimizer
from bnpass.training.watch import Watch

_STATISTICS_SAMPLES = 1000


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
    """

    gm: fx.GraphModule
    model: nn.Module
    goal: Objective
    feed: Feed
    validation: Data | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    config: TrainConfig
    total: int
    log_every: int
    eval_every: int
    save_every: int
    watch: Watch | None

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

    def validate(self) -> Score | None:
        """Loss and accuracy on the validation data; weights and statistics stay as they are."""
        if self.validation is None:
            return None
        calibrated = self.config.validate_with == "calibrated" and not self.config.freeze_bn
        modes = [(part, part.training) for part in self.gm.modules()]
        with statistics_kept(self.gm), autocast(self.device, self.config.precision):
            try:
                if calibrated:
                    calibrate(self.gm, _few(self.feed.data, self.config), deal=False, warn=False)
                result = score(self.goal, self.validation, self.device,
                               precision=self.config.precision,
                               channels_last=self.config.channels_last)
            except NotFiniteError:  # the weights have left the range of their type
                result = Score(math.nan, None, 0)
        for part, mode in modes:
            part.training = mode
        return result


def prepare(
    gm: fx.GraphModule, data: Data, validation: Data | None, config: TrainConfig, stack: ExitStack
) -> Setup:
    """Make the parts of a run; ``stack`` undoes at its end what was done to the network.

    Raises:
        InputError: data and network do not fit.
        UsageError: settings that contradict each other or the machine.
    """
    distributed.join(config.device)
    device = pick_device(config.device)
    autocast(device, config.precision)
    _check_sizes(gm, data, config)
    _move(gm, device, config, stack)
    sample, _ = to_tensors(data, np.arange(min(2, len(data))), device)
    goal = objective(gm, data.labels, sample, loss=config.loss,
                     label_smoothing=config.label_smoothing, where="training data")
    if validation is not None and goal.correct is not None:
        objective(gm, validation.labels, sample, loss=config.loss, where="validation data")
    _into_training(gm, config, stack)
    optimizer = _optimizer(goal.module, config)
    total = config.total_steps(len(data))
    eval_every = config.eval_every or max(1, total // 10)
    return Setup(
        gm=gm, model=_wrapped(goal.module, device, config), goal=goal,
        feed=Feed(data, config, device),
        validation=None if validation is None else validation.cached(), optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        device=device, config=config, total=total,
        log_every=config.log_every or max(1, total // 100), eval_every=eval_every,
        save_every=config.checkpoint_every or eval_every,
        watch=_watch(gm, validation or data, device, config),
    )


def _check_sizes(gm: fx.GraphModule, data: Data, config: TrainConfig) -> None:
    if len(data) == 0:
        raise InputError("no training data", "the data set is empty")
    parts = distributed.world() * config.accumulate
    normed = bool(batch_norms(gm)) and not config.freeze_bn
    if min(config.batch_size, len(data)) < parts * (2 if normed else 1):
        raise UsageError(
            f"batch size {config.batch_size} of {len(data)} samples in {parts} parts",
            "each process and micro-batch needs a sample, and 2 or more for BN")


def _move(
    gm: fx.GraphModule, device: torch.device, config: TrainConfig, stack: ExitStack
) -> None:
    home = next((p.device for p in gm.parameters()), torch.device("cpu"))
    gm.to(device)
    stack.callback(gm.to, home)
    if config.channels_last:
        _set_format(gm, torch.channels_last)
        stack.callback(_set_format, gm, torch.contiguous_format)


def _set_format(gm: fx.GraphModule, memory_format: torch.memory_format) -> None:
    for parameter in gm.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _into_training(gm: fx.GraphModule, config: TrainConfig, stack: ExitStack) -> None:
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
    if config.virtual_batch:
        stack.enter_context(normalising_with(live, by_ghost_batches(config.virtual_batch)))
    elif distributed.world() > 1:
        stack.enter_context(normalising_with(live, across_processes))


def _optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError("the network has no parameters to train", "check what was frozen")
    return make_optimizer(module, config)


def _wrapped(module: fx.GraphModule, device: torch.device, config: TrainConfig) -> nn.Module:
    model: nn.Module = module
    if config.compile:
        model = torch.compile(module)  # type: ignore[assignment]
    if distributed.world() > 1:
        ids = [device.index] if device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    return model


def _watch(
    gm: fx.GraphModule, data: Data, device: torch.device, config: TrainConfig
) -> Watch | None:
    if not config.watch:
        return None
    few = _few(data, config)
    samples, _ = to_tensors(few, np.arange(len(few)), device)
    return Watch(gm, config.watch, samples)


def _few(data: Data, config: TrainConfig) -> Data:
    """The same samples each time, from all over the set: files often hold class after class."""
    order = np.random.default_rng((config.seed, 0xF3)).permutation(len(data))
    return data.subset(np.sort(order[:_STATISTICS_SAMPLES]))
