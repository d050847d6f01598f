"""One step of training: the gradient of a batch, then the optimizer."""

from __future__ import annotations

import torch

from bnpass.data.trees import mapped
from bnpass.nn import distributed
from bnpass.training.devices import autocast, seed_step, step_generator
from bnpass.training.feed import Pair, augment, run, samples_of
from bnpass.training.losses import Tally
from bnpass.training.setup import Setup


def take_step(setup: Setup, step: int, rate: float, batches: list[Pair], tally: Tally) -> None:
    """Train on this process's micro-batches of one step.

    Args:
        setup: the parts of the run.
        step: its number, from which its randomness follows.
        rate: its learning rate.
        batches: ``(inputs, targets)``, this process's part of the global batch.
        tally: takes in loss and right answers.
    """
    config = setup.config
    seed_step(config.seed, step)
    random = step_generator(config.seed, step) if config.crop or config.flip else None
    setup.set_rate(rate)
    if setup.renorm is not None:
        setup.renorm.step = step
    setup.optimizer.zero_grad(set_to_none=True)
    for number, (x, y) in enumerate(batches):
        x = x if random is None else augment(x, random, crop=config.crop, flip=config.flip)
        # Mean over the global batch: DDP averages over processes, whose parts may differ in size.
        samples = samples_of((x, y))
        share = samples * distributed.world() / setup.feed.batch
        with setup.syncing(last=number == len(batches) - 1):
            with autocast(setup.device, config.precision):
                outputs = run(setup.model, x)
                loss = setup.goal.loss(outputs, y)
            watched = setup.gradients_to_watch(outputs)
            setup.scaler.scale(loss * share).backward()
        setup.say_untrained(watched)
        tally.add(setup.goal, loss.detach(), mapped(outputs, torch.Tensor.detach), y, samples)
    if config.clip_norm:
        setup.scaler.unscale_(setup.optimizer)
        torch.nn.utils.clip_grad_norm_(setup.parameters, config.clip_norm)
    setup.scaler.step(setup.optimizer)
    setup.scaler.update()
    if setup.average is not None:
        setup.average.update()
    tally.steps += 1
