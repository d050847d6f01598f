"""Population statistics of batch normalisation: exactly those that inference should use.

The paper (Ioffe & Szegedy 2015, Algorithm 2) averages the batches' unbiased variances. That is
right for the first BN only: behind another BN, centring makes the samples of a batch negatively
correlated and the factor m/(m-1) over-corrects. ``pooled`` takes large batches and the law of total
variance instead: the mean of the biased batch variances plus the variance of the batch means.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import nn

from bnpass.errors import InputError, UsageError, close_matches
from bnpass.training import distributed
from bnpass.training.grouping import Inputs, Source
from bnpass.training.moments import Moments
from bnpass.training.norms import Tensor, batch_norms, by_batch, frozen, normalising_with

log = logging.getLogger("bnpass.training")


class NotFiniteError(InputError):
    """What a BN sees is not finite: the network overflows."""


METHODS = ("pooled", "paper", "ema")
_WORKING = 6  # a BN's input, its output, a copy while moments are taken, and its neighbours'
_FEW = 50  # elements per channel and batch below which the moments are poor


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
    moments merged: every process must pass the same data, and gets the same statistics.

    Args:
        gm: a network with BN modules (:class:`torch.nn.BatchNorm2d` or the like).
        loader: yields inputs or (inputs, labels); or a torch Dataset, a tensor or array
            ``(n, ...)``, or a :class:`bnpass.data.Data`, which are shuffled with the seed.
        method: ``"pooled"``; ``"paper"``, Algorithm 2, with ``batch_size`` that of training; or
            ``"ema"``, torch's moving average over the batches, the first taken whole.
        batch_size: samples that are normalised together; smaller batches of a loader are joined.
        device: where to compute; by default where the parameters are.
        seed: of the shuffling.
        memory_budget: bytes of activations to stay within by taking smaller batches.
        deal: under torchrun, deal the batches (``False``: each process computes alone).
        warn: log what makes the statistics poor (few samples, a BN that got none).

    Returns:
        ``gm`` itself.

    Raises:
        InputError: no samples, or too few for a variance.
        NotFiniteError: the network overflows.
        UsageError: an unknown method.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}",
                         close_matches(method, METHODS) or f"choose {', '.join(METHODS)}")
    if batch_size < 2:
        raise UsageError(f"batch size {batch_size}", "a variance needs 2 samples or more")
    kept = frozen(gm)
    norms = {name: norm for name, norm in batch_norms(gm).items() if name not in kept}
    gm.eval()
    if not norms:
        return gm
    home = _device(gm)
    place = torch.device(device) if device is not None else home
    gm.to(place)
    source = Source(loader, _arity(gm), seed)
    if source.empty:
        raise InputError("no data to take population statistics from", "the loader is empty")
    size = min(batch_size, _affordable(gm, norms, source.example(2), place, memory_budget))
    moments = _collect(gm, norms, source, size, place, deal=deal)
    if warn:
        _warn(moments, method)
    _store(norms, moments, method)
    gm.to(home)
    return gm


def _collect(
    gm: nn.Module, norms: dict[str, nn.Module], source: Source, size: int, device: torch.device,
    *, deal: bool,
) -> dict[str, Moments]:
    moments = {name: Moments() for name in norms}
    of = {norm: moments[name] for name, norm in norms.items()}

    def observe(norm: Any, x: Tensor) -> Tensor:
        if x.numel() <= x.shape[1]:
            raise InputError("a single value per channel has no variance",
                             "population statistics need 2 samples or more in a batch")
        of[norm].add(x, norm.momentum)
        return by_batch(norm, x)

    workers, mine = (distributed.world(), distributed.rank()) if deal else (1, 0)
    with torch.no_grad(), normalising_with(list(norms.values()), observe):
        for number, inputs in enumerate(source.batches(size)):
            if number % workers == mine:
                gm(*_placed(inputs, device))
    return _merged(moments) if workers > 1 else moments


def _merged(moments: dict[str, Moments]) -> dict[str, Moments]:
    """The processes' moments in one, in the order of their ranks: the same everywhere."""
    merged = {name: Moments() for name in moments}
    for theirs in distributed.gather(moments):
        for name, part in theirs.items():
            merged[name].merge(part)
            merged[name].ema = merged[name].ema or part.ema
    return merged


def _warn(moments: dict[str, Moments], method: str) -> None:
    if method == "ema":
        log.warning("population statistics: a moving average depends on the last batches; pooled "
                    "takes as long and is exact")
    for name, seen in moments.items():
        if not seen.batches:
            log.warning("population statistics: %s got no input and keeps its own", name)
        elif seen.smallest < _FEW:
            log.warning("population statistics: %s saw only %d elements per channel in a batch; "
                        "give more samples or larger batches", name, seen.smallest)


def _store(norms: dict[str, nn.Module], moments: dict[str, Moments], method: str) -> None:
    for name, norm in norms.items():
        if not moments[name].batches:
            continue
        mean, var = moments[name].result(method)
        if not (torch.isfinite(mean).all() and torch.isfinite(var).all()):
            raise NotFiniteError(f"population statistics of {name} are not finite",
                                 "the network overflows on this data: check weights and scaling")
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(var)


def _affordable(
    gm: nn.Module, norms: dict[str, nn.Module], example: Inputs, device: torch.device, budget: int
) -> int:
    """Samples in a batch whose largest BN inputs stay within the budget; at least 2."""
    largest = 0

    def measure(norm: Any, x: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, x.numel() * x.element_size() // len(example[0]))
        return type(norm).forward(norm, x)  # type: ignore[no-any-return]

    with torch.no_grad(), normalising_with(list(norms.values()), measure):
        gm(*_placed(example, device))
    return max(2, budget // max(1, largest * _WORKING))


def _placed(inputs: Inputs, device: torch.device) -> Inputs:
    return tuple(x.to(device) for x in inputs)


def _device(module: nn.Module) -> torch.device:
    held: Tensor | None = next(module.parameters(), None)
    held = held if held is not None else next(module.buffers(), None)
    return held.device if held is not None else torch.device("cpu")


def _arity(module: nn.Module) -> int:
    graph = getattr(module, "graph", None)
    if graph is None:
        wanted = inspect.signature(module.forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return sum(p.kind in kinds and p.default is p.empty for p in wanted) or 1
    return sum(n.op == "placeholder" and not n.args for n in graph.nodes) or 1
