"""Population statistics of batch normalisation: exactly those that inference should use.

The paper (Ioffe & Szegedy 2015, Algorithm 2) averages the batches' unbiased variances. That is
right for the first BN only: behind another BN, centring makes the samples of a batch negatively
correlated and the factor m/(m-1) over-corrects. ``pooled`` takes large batches and the law of total
variance instead: the mean of the biased batch variances plus the variance of the batch means.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from bnpass.data.protocol import Arguments
from bnpass.data.trees import count
from bnpass.errors import InputError, UsageError
from bnpass.ir.affine import at_channel, infinite_channel
from bnpass.nn import distributed
from bnpass.nn.calls import Feeder, device_of, takes_of
from bnpass.nn.masks import counted, counting
from bnpass.nn.norms import (
    Tensor,
    batch_norms,
    by_batch,
    frozen,
    normalising_with,
    plain_forward,
    statistics,
)
from bnpass.statistics import cautions
from bnpass.statistics.moments import BatchMoments, Moments, check_method
from bnpass.statistics.source import Source

log = logging.getLogger("bnpass.statistics")

_WORKING = 6  # a BN's input, its output, a copy while moments are taken, and its neighbours'

Observe = Callable[[nn.Module, Tensor], None]


class NotFiniteError(InputError):
    """What a BN sees is not finite: the network overflows."""


def calibrate(
    gm: nn.Module,
    loader: Any,
    *,
    method: str = "pooled",
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int = 0,
    memory_budget: int = 2 << 30,
    deal: bool = True,
    warn: bool = True,
) -> nn.Module:
    """Set the running statistics of every BN from data, in one pass; leaves ``gm`` in eval mode.

    Every BN that is not frozen normalises by its batch, so that those behind it see what they saw
    in training; Dropout is off. Under torchrun the batches are dealt to the processes and the
    moments merged: every process must pass the same data, and gets the same statistics. Where one
    BN's statistics cannot be had, all keep their own.

    Args:
        gm: a network with BN modules (:class:`torch.nn.BatchNorm2d`, the like, or a subclass).
        loader: yields inputs or (inputs, targets), see :mod:`bnpass.data.protocol`; or a torch
            Dataset, a tensor or array ``(n, ...)``, or a :class:`bnpass.data.Data`. Samples are
            shuffled with the seed, see :class:`bnpass.statistics.source.Source`.
        method: ``"pooled"``, ``"paper"``, ``"ema"`` or ``"exact"``, see
            :mod:`bnpass.statistics.moments`; ``"ema"`` takes the batches as they come,
            ``"exact"`` walks over them once for each BN.
        batch_size: most samples that are normalised together; smaller batches are joined.
        device: where to compute; by default where the parameters are.
        seed: of the shuffling.
        memory_budget: bytes of activations to stay within by taking smaller batches.
        deal: under torchrun, deal the batches (``False``: each process computes alone).
        warn: log that there is no BN, or what makes the statistics poor (few samples, sorted ones,
            a BN that got none).

    Returns:
        ``gm`` itself.

    Raises:
        InputError: no samples, or too few for a variance.
        NotFiniteError: statistics are not finite in the type that the BN holds them in.
        UsageError: an unknown method.
    """
    check_method(method)
    if batch_size < 2:
        raise UsageError(f"batch size {batch_size}", "a variance needs 2 samples or more")
    kept = frozen(gm)
    norms = {name: norm for name, norm in batch_norms(gm).items() if name not in kept}
    gm.eval()
    if not norms:
        if warn and not kept:
            log.warning("calibrate: the network has no BatchNorm; nothing to do")
        return gm
    home = device_of(gm)
    place = torch.device(device) if device is not None else home
    with moved(gm, place, home):
        source = Source(loader, takes_of(gm), seed)
        if source.empty:
            raise InputError("no data to take population statistics from", "the loader is empty")
        if warn:
            cautions.warn_of_padding(source)
        feeder = Feeder(gm, place)
        size = min(batch_size, _affordable(gm, norms, source.example(2), feeder, memory_budget))
        if method == "exact":
            _layer_by_layer(gm, norms, source, feeder, size, deal=deal)
            return gm
        batches = source.batches(size, in_order=method == "ema")
        moments = _collect(gm, norms, batches, feeder, keep=method != "pooled", deal=deal)
        if warn:
            cautions.warn(moments, method, source)
        _store(norms, moments, method)
    return gm


@contextmanager
def moved(gm: nn.Module, place: torch.device, home: torch.device) -> Iterator[None]:
    """The network on another device for a while."""
    gm.to(place)
    try:
        yield
    finally:
        gm.to(home)


def run(gm: nn.Module, call: Arguments) -> None:
    """Run a network on inputs, those positions counting that their mask says."""
    with counting(call.mask):
        gm(*call.args, **call.kwargs)


def _collect(
    gm: nn.Module, norms: dict[str, nn.Module], batches: Iterator[Arguments], feeder: Feeder, *,
    keep: bool, deal: bool,
) -> dict[str, Moments]:
    moments = {name: Moments(keep=keep) for name in norms}
    of = {norm: moments[name] for name, norm in norms.items()}
    number = samples = 0

    def observe(norm: nn.Module, x: Tensor) -> None:
        of[norm].add(moments_of(x, channel_axis(norm, x), number, samples))

    workers, mine = (distributed.world(), distributed.rank()) if deal else (1, 0)
    with torch.no_grad(), on_batches(list(norms.values()), observe):
        for number, call in enumerate(batches):
            if number % workers == mine:
                samples = count(call.trees) or 0
                run(gm, feeder(call))
    return _merged(moments) if workers > 1 else moments


def _layer_by_layer(
    gm: nn.Module, norms: dict[str, nn.Module], source: Source, feeder: Feeder, size: int, *,
    deal: bool,
) -> None:
    """Give the BNs, in the order in which they are called, what each sees in eval mode."""
    calls = list(source.batches(size))
    order: dict[str, None] = {}
    held = statistics(gm)
    hooks = [norm.register_forward_pre_hook(lambda _, __, name=name: order.setdefault(name))
             for name, norm in norms.items()]
    try:
        with torch.no_grad():
            run(gm, feeder(calls[0]))
        for name in order:
            seen = _seen_in_eval_mode(gm, norms[name], calls, feeder, deal=deal)
            _store({name: norms[name]}, {name: seen}, "exact")
    except BaseException:
        for name, value in held.items():
            gm.get_buffer(name).copy_(value)
        raise
    finally:
        for hook in hooks:
            hook.remove()


def _seen_in_eval_mode(
    gm: nn.Module, norm: nn.Module, calls: list[Arguments], feeder: Feeder, *, deal: bool
) -> Moments:
    """The moments of one BN's input over all batches."""
    seen = Moments()
    workers, mine = (distributed.world(), distributed.rank()) if deal else (1, 0)
    hook = norm.register_forward_pre_hook(
        lambda module, args: seen.add(moments_of(args[0], channel_axis(module, args[0]))))
    try:
        with torch.no_grad():
            for call in calls[mine::workers]:
                run(gm, feeder(call))
    finally:
        hook.remove()
    return _merged({"": seen})[""] if workers > 1 else seen


def moments_of(x: Tensor, axis: int = 1, number: int = 0, samples: int = 0) -> BatchMoments:
    """A batch's own moments along every axis but one, as torch computes them.

    (Welford's algorithm, in float32 or better.) Only what counts, see :mod:`bnpass.nn.masks`.

    Raises:
        InputError: one element a channel has no variance.
    """
    chosen = counted(x, axis)
    if chosen is not None:
        x, axis = chosen, 1
    elements = x.numel() // max(1, x.shape[axis])
    if elements < 2:
        raise InputError("a single value per channel has no variance",
                         "population statistics need 2 samples or more in a batch")
    axes = [d for d in range(x.ndim) if d != axis % x.ndim]
    values = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    var, mean = (v.double().cpu().numpy() for v in torch.var_mean(values, axes, correction=0))
    return BatchMoments(mean, var, elements, number, samples)


def channel_axis(norm: Any, x: Tensor) -> int:
    """The axis of a BN's input that has its channels: 1, or the last where only that fits.

    Raises:
        InputError: no axis has as many entries as the BN has channels.
    """
    channels = len(norm.running_mean)
    for axis in (1, -1):
        if x.ndim > 1 and x.shape[axis] == channels:
            return axis
    raise InputError(f"a norm of {channels} channels is called with a tensor of shape "
                     f"{list(x.shape)}", "its channels must be the input's axis 1")


@contextmanager
def on_batches(norms: list[nn.Module], observe: Observe) -> Iterator[None]:
    """Let BNs normalise by their batch for a while, and show what each gets.

    A class with a forward of its own (a subclass with an activation, say) runs it, in training
    mode; statistics and mode are as before afterwards.
    """
    def normalise(norm: Any, x: Tensor) -> Tensor:
        observe(norm, x)
        return by_batch(norm, x)

    with ExitStack() as stack:
        stack.enter_context(normalising_with([n for n in norms if plain_forward(n)], normalise))
        for norm in norms:
            if not plain_forward(norm):
                stack.enter_context(_in_training_mode(norm, observe))
        yield


@contextmanager
def _in_training_mode(norm: Any, observe: Observe) -> Iterator[None]:
    held = [(buffer, buffer.clone()) for buffer in norm.buffers(recurse=False)]
    mode = norm.training
    hook = norm.register_forward_pre_hook(lambda module, args: observe(module, args[0]))
    norm.training = True
    try:
        yield
    finally:
        hook.remove()
        norm.training = mode
        for buffer, value in held:
            buffer.copy_(value)


def _merged(moments: dict[str, Moments]) -> dict[str, Moments]:
    """The processes' moments in one, in the order of their ranks: the same everywhere."""
    merged = {name: Moments(keep=found.keep) for name, found in moments.items()}
    for theirs in distributed.gather(moments):
        for name, part in theirs.items():
            merged[name].merge(part)
    return merged


def _store(norms: dict[str, nn.Module], moments: dict[str, Moments], method: str) -> None:
    """Give every BN its statistics, or none of them."""
    found: list[tuple[Tensor, Tensor]] = []
    for name, norm in norms.items():
        if not moments[name].seen:
            continue
        buffers = (norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
        start: Any = tuple(b.double().cpu().numpy() for b in buffers)
        values = moments[name].result(method, name, start=start,
                                      momentum=getattr(norm, "momentum", 0.1))
        found += [(buffer, _held(buffer, value, name))
                  for buffer, value in zip(buffers, values, strict=True)]
    for buffer, value in found:
        buffer.copy_(value)


def _held(buffer: Tensor, value: np.ndarray[Any, Any], name: str) -> Tensor:
    cast = torch.from_numpy(np.asarray(value)).to(buffer.dtype)
    if not torch.isfinite(cast).all():
        kind = str(buffer.dtype).removeprefix("torch.")
        at = at_channel(infinite_channel(cast.double().numpy()))
        raise NotFiniteError(f"population statistics of {name} are not finite in {kind}{at}",
                             "the network overflows on this data: check weights and scaling, or "
                             "keep its norms in float32")
    return cast


def _affordable(
    gm: nn.Module, norms: dict[str, nn.Module], example: Arguments, feeder: Feeder, budget: int
) -> int:
    """Samples in a batch whose largest BN inputs stay within the budget; at least 2."""
    largest, samples = 0, count((example.args, example.kwargs)) or 1

    def measure(_norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal largest
        largest = max(largest, args[0].numel() * args[0].element_size() // samples)

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms.values()]
    try:
        with torch.no_grad():
            feeder.settle(lambda call: gm(*call.args, **call.kwargs), example)
    finally:
        for hook in hooks:
            hook.remove()
    return max(2, budget // max(1, largest * _WORKING))
