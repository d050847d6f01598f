"""What a network is trained to make small, over all of its outputs that have a target."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from bnpass.data.callables import load_callable
from bnpass.data.labels import check_labels
from bnpass.data.protocol import Arguments
from bnpass.errors import InputError, UsageError, close_matches
from bnpass.nn import distributed
from bnpass.training.config import losses_asked
from bnpass.training.metrics import (
    Accuracy,
    MeanIoU,
    Metric,
    MultiLabel,
    Nothing,
    Regression,
    blamed,
    described,
    own_metric,
)
from bnpass.training.outputs import (
    ByName,
    Endings,
    Heads,
    endings_of,
    heads_of_graph,
    output_names,
    outputs_by_name,
)

log = logging.getLogger("bnpass.training")

Tensor = torch.Tensor
Labels = Any
"""An array ``(n, ...)`` of classes or targets, or several of them, by name or in order."""

_FEW = 256  # samples that the trivial loss is taken from
_TAKES = "a loss gets two: outputs (a tensor, or a dict by output name) and targets"


@dataclass(frozen=True)
class Objective:
    """A network's view to train, and how its outputs are judged.

    Attributes:
        module: the network; cut in front of a final Softmax, LogSoftmax or Sigmoid where the loss
            takes logits; it shares its parameters with the network.
        name: of the loss, for one output ``"cross_entropy"``, ``"bce"``, ``"mse"``; for several
            ``"classes=cross_entropy,boxes=mse"``; or the name of people's own.
        loss: ``(what the module returns, targets)`` to the mean over the samples, a scalar.
        metric: makes a new metric, which takes the same; ``True`` for validations, where it may
            cost more.
        names: of the metrics.
        trivial: the loss of outputs that are all zero, on a few samples; NaN where unknown.
        heads: names of the outputs that it looks at; none for people's own.
        sigmoids: those in front of whose final Sigmoid it looks.
    """

    module: nn.Module
    name: str
    loss: Callable[[Any, Any], Tensor]
    metric: Callable[[bool], Metric]
    names: tuple[str, ...] = ()
    trivial: float = math.nan
    heads: tuple[str, ...] = ()
    sigmoids: frozenset[str] = frozenset()


class Tally:
    """Loss and metrics since the last report, summed on the device without waiting for it."""

    def __init__(self) -> None:
        self.loss: Tensor | float = 0.0
        self.metric: Metric | None = None
        self.seen = self.steps = 0

    def add(self, goal: Objective, loss: Tensor, outputs: Any, targets: Any, samples: int) -> None:
        """Take in a batch."""
        self.loss = self.loss + loss.double() * samples
        self.seen += samples
        self.metric = self.metric or goal.metric(False)
        self.metric.add(outputs, targets)

    def means(self) -> tuple[float, dict[str, float]]:
        """Mean loss and the metrics over all processes."""
        loss, seen = distributed.total(float(self.loss), self.seen)
        return loss / max(1, seen), self.metric.values() if self.metric is not None else {}


def objective(
    gm: nn.Module, labels: Labels, sample: Tensor | Arguments, *, loss: str = "auto",
    label_smoothing: float = 0.0, ignore_index: int = -100, metric: str = "auto",
    where: str = "labels",
) -> Objective:
    """Choose the loss and check that the targets fit the network's outputs.

    ``"auto"`` takes the cross entropy for class labels, binary cross entropy for a single output
    (or for targets in front of a Sigmoid), and the mean squared error for other targets. Targets by
    name belong to the outputs of the same names, a single array to the first output; several losses
    add up. ``"classes=cross_entropy,boxes=0.5*mse"`` says for each output which. The network is
    trained on the value in front of a final Softmax, LogSoftmax or Sigmoid, except for ``mse`` and
    people's own losses, which get the outputs as they are.

    Args:
        gm: the network.
        labels: all targets, int64 classes or float32 numbers.
        sample: a few samples to run the network with.
        loss: see above; or ``"package.module:loss"``, which gets ``(outputs, targets)``: one
            tensor or, from a file with several outputs, a dict by their names (from a module,
            whatever it returns).
        label_smoothing: share of the probability that goes to all classes alike.
        ignore_index: a class label that is left out of the loss and of the metrics.
        metric: ``"auto"`` for the task's own, or ``"package.module:metric"``.
        where: named in messages, which also warn of a class without a sample.

    Raises:
        InputError: labels do not fit the outputs.
        UsageError: an unknown loss, or one for an output that is not there.
    """
    parts = loss.split("=", maxsplit=1)[0]
    if ":" in parts:
        return _own(gm, loss, metric)
    outputs, endings = _probe(gm, sample)
    terms = _terms(outputs, endings, labels, losses_asked(loss), (label_smoothing, ignore_index),
                   where)
    _say_untrained(outputs, terms)
    names = [term.head for term in terms]
    cut = {term.head for term in terms if term.kind in ("cross_entropy", "bce")}
    single = len(terms) == 1
    judge = own_metric(metric) if metric != "auto" else partial(_Judge, tuple(terms))
    measured = [(f"{term.head}." if number else "") + name for number, term in enumerate(terms)
                for name in term.names]
    return Objective(
        _view(gm, names, cut), terms[0].kind if single and terms[0].weight == 1 else
        ",".join(str(term) for term in terms), partial(_sum, tuple(terms)), judge,
        tuple(measured) if metric == "auto" else (metric.rpartition(":")[2],),
        _trivial(terms, outputs, labels), tuple(names),
        frozenset(name for name in cut if endings[name] == "sigmoid"),
    )


# --- the losses of outputs ------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """The loss of one output.

    Attributes:
        head: the output's name.
        target: its target's name or position; None where there is only one.
        kind: one of :data:`bnpass.training.config.LOSSES`.
        weight: factor in the sum.
        loss: ``(output, target)`` to a scalar.
        metric: makes its metric.
        names: what that measures.
    """

    head: str
    target: str | int | None
    kind: str
    weight: float
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[bool], Metric]
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.head}=" + (f"{self.weight:g}*" if self.weight != 1 else "") + self.kind

    def of(self, targets: Any) -> Any:
        """This output's target."""
        return targets if self.target is None else targets[self.target]


def _sum(terms: tuple[Term, ...], outputs: Any, targets: Any) -> Tensor:
    values = outputs if len(terms) > 1 else (outputs,)
    parts = [term.loss(value, term.of(targets)) * term.weight if term.weight != 1
             else term.loss(value, term.of(targets))
             for term, value in zip(terms, values, strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


class _Judge:
    """The metrics of all outputs; from the second one on with the output's name in front."""

    def __init__(self, terms: tuple[Term, ...], ranked: bool) -> None:
        self.terms = terms
        self.metrics = [term.metric(ranked) for term in terms]

    def add(self, outputs: Any, targets: Any) -> None:
        """Take in a batch."""
        values = outputs if len(self.terms) > 1 else (outputs,)
        for term, metric, value in zip(self.terms, self.metrics, values, strict=True):
            metric.add(value, term.of(targets))

    def values(self) -> dict[str, float]:
        """The measures by name."""
        found: dict[str, float] = {}
        for number, (term, metric) in enumerate(zip(self.terms, self.metrics, strict=True)):
            prefix = f"{term.head}." if number else ""
            found |= {prefix + name: value for name, value in metric.values().items()}
        return found


def _terms(
    outputs: dict[str, Tensor], endings: dict[str, str], labels: Labels,
    asked: dict[str, tuple[str, float]], settings: tuple[float, int], where: str,
) -> list[Term]:
    pairs = _paired(outputs, labels, [name for name in asked if name])
    terms = []
    for head, target in pairs:
        y = np.asarray(labels if target is None else labels[target])
        kind, weight = asked.get(head, asked.get("", ("auto", 1.0)))
        if kind == "auto":
            kind = _choose(outputs[head], y, endings[head], settings[1])
        make = {"cross_entropy": _cross_entropy, "bce": _bce_term, "mse": _mse_term}[kind]
        named = where if target is None else f"{where}, {target!r}"
        terms.append(Term(head, target, kind, weight, *make(outputs[head], y, *settings, named)))
    return terms


def _paired(
    outputs: dict[str, Tensor], labels: Labels, asked: list[str]
) -> list[tuple[str, str | int | None]]:
    """Which output has which target."""
    heads = [name for name, value in outputs.items() if value.is_floating_point()]
    for name in asked:
        if name not in outputs:
            raise UsageError(f"--loss names {name!r}, no output of the network",
                             close_matches(name, outputs)
                             or "its outputs are " + ", ".join(outputs))
    wanted = asked or heads
    if isinstance(labels, dict):
        found: list[tuple[str, str | int | None]] = [(h, h) for h in wanted if h in labels]
        if found:
            return found
        if len(wanted) != len(labels):
            raise InputError(f"targets {', '.join(labels)} for outputs {', '.join(heads)}",
                             "call targets like the outputs, or give --loss package.module:loss")
        return list(zip(wanted, labels, strict=True))
    if isinstance(labels, tuple | list):
        if len(labels) > len(wanted):
            raise InputError(f"{len(labels)} targets for {len(wanted)} outputs",
                             "give one for each output, or --loss package.module:loss")
        return list(zip(wanted, range(len(labels)), strict=False))
    return [(wanted[0], None)] if not asked else [(name, None) for name in asked]


def _say_untrained(outputs: dict[str, Tensor], terms: list[Term]) -> None:
    trained = {term.head for term in terms}
    left = [name for name, value in outputs.items()
            if name not in trained and value.is_floating_point()]
    if left and distributed.rank() == 0:
        log.warning("output %s gets no gradient: no target is for it, and what leads to it alone "
                    "stays untrained; give a target of that name, or a loss of your own",
                    ", ".join(left))


def _trivial(terms: list[Term], outputs: dict[str, Tensor], labels: Labels) -> float:
    """The loss of outputs that are all 0: what a network that has learnt nothing may have."""
    total = 0.0
    for term in terms:
        y = torch.from_numpy(np.ascontiguousarray(np.asarray(term.of(labels))[:_FEW]))
        zero = torch.zeros(len(y), *outputs[term.head].shape[1:])
        total += abs(float(term.loss(zero, y))) * abs(term.weight)
    return total


# --- people's own ---------------------------------------------------------------------------------


def _own(gm: nn.Module, spec: str, metric: str) -> Objective:
    function = load_callable(spec)
    _check_arity(spec, function)

    def loss(outputs: Any, targets: Any) -> Tensor:
        with blamed(spec, "loss", outputs, targets):
            value = function(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise InputError(f"{spec} returned {described(value)}",
                             "a loss returns one number for the batch, as a tensor")
        return value.reshape(())

    names = output_names(gm)
    view = ByName(gm, names) if len(names) > 1 else gm
    if metric == "auto":
        return Objective(view, spec, loss, lambda _: Nothing())
    return Objective(view, spec, loss, own_metric(metric), (metric.rpartition(":")[2],))


def _check_arity(spec: str, function: Callable[..., Any]) -> None:
    import inspect

    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise InputError(f"{spec} takes other arguments than a loss: {error}", _TAKES) from error
    except ValueError:  # a signature that cannot be read: it will be seen when it is called
        return


# --- views ----------------------------------------------------------------------------------------


def _probe(gm: nn.Module, sample: Tensor | Arguments) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A few samples' outputs by name, and what each output ends in."""
    modes = [(m, m.training) for m in gm.modules()]
    gm.eval()
    call = sample if isinstance(sample, Arguments) else Arguments((sample,))
    try:
        with torch.no_grad(), Endings() as seen:
            outputs = outputs_by_name(gm(*call.args, **call.kwargs), output_names(gm))
    finally:
        for part, mode in modes:
            part.training = mode
    if isinstance(gm, fx.GraphModule):
        return outputs, endings_of(gm)
    return outputs, {name: seen.before(value)[1] for name, value in outputs.items()}


def _view(gm: nn.Module, names: list[str], cut: set[str]) -> nn.Module:
    if isinstance(gm, fx.GraphModule):
        return heads_of_graph(gm, names, cut)
    return Heads(gm, names, cut)


def _choose(outputs: Tensor, labels: np.ndarray[Any, Any], ending: str, ignore: int) -> str:
    whole = labels.dtype.kind in "iu"
    per_sample = outputs[0].numel() if len(outputs) else 0
    if whole and per_sample == 1:
        return "bce"
    if whole and labels.ndim < outputs.ndim:
        return "cross_entropy"
    known = labels[labels != ignore] if whole else labels
    in_range = known.size and known.min() >= 0 and known.max() <= 1
    return "bce" if (ending == "sigmoid" or (whole and labels.shape[1:] == outputs.shape[1:])) \
        and in_range else "mse"


# --- classes --------------------------------------------------------------------------------------

Made = tuple[
    Callable[[Tensor, Tensor], Tensor], Callable[[bool], Metric], tuple[str, ...]
]


def _class_count(outputs: Tensor, labels: np.ndarray[Any, Any]) -> int:
    return int(outputs.shape[-1] if _classes_last(outputs, labels.shape) else outputs.shape[1])


def _classes_last(outputs: Tensor, labels: tuple[int, ...]) -> bool:
    """Whether the classes are the last axis, as in ``(n, tokens, classes)``; images have them 1."""
    if outputs.ndim < 2 or len(labels) != outputs.ndim - 1:
        raise InputError(f"labels of shape {list(labels)} do not fit outputs of shape "
                         f"{list(outputs.shape)}", "give one class number for each prediction")
    return outputs.ndim > 2 and tuple(outputs.shape[1:-1]) == tuple(labels[1:])


def _cross_entropy(
    outputs: Tensor, labels: np.ndarray[Any, Any], smoothing: float, ignore: int, where: str
) -> Made:
    classes = _class_count(outputs, labels)
    known = labels[labels != ignore] if labels.dtype.kind in "iu" else labels
    if labels.size and not known.size:
        raise InputError(f"{where}: every label is {ignore}, which is ignored",
                         "give at least one label, or another --ignore-index")
    check_labels(known, classes, where=where)
    ignores = known.size < labels.size

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        first = _classes_first(outputs, labels)
        if not ignores:
            return F.cross_entropy(first, labels, label_smoothing=smoothing)
        summed = F.cross_entropy(first, labels, ignore_index=ignore, label_smoothing=smoothing,
                                 reduction="sum")
        return summed / (labels != ignore).sum().clamp(min=1)  # a batch without any label: 0

    def guessed(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return _classes_first(outputs, labels).argmax(1), labels != ignore

    def right(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        guess, counted = guessed(outputs, labels)
        return guess == labels, counted

    if labels.ndim > 2:
        return loss, lambda _: MeanIoU(classes, guessed), ("miou", "accuracy")
    return loss, lambda _: Accuracy(right), ("accuracy",)


def _classes_first(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.movedim(-1, 1) if _classes_last(outputs, tuple(labels.shape)) else outputs


# --- yes or no, and numbers -----------------------------------------------------------------------


def _bce_term(
    outputs: Tensor, labels: np.ndarray[Any, Any], _smoothing: float, _ignore: int, _where: str
) -> Made:
    _check_shape(outputs, labels)
    if labels.size and (labels.min() < 0 or labels.max() > 1):
        raise InputError(f"labels from {labels.min():g} to {labels.max():g} for yes-or-no outputs",
                         "bce takes labels from 0 to 1; use cross_entropy for classes")
    if outputs[0].numel() > 1:
        return _bce, MultiLabel, ("f1", "map")
    return _bce, lambda _: Accuracy(_right_side), ("accuracy",)


def _check_shape(outputs: Tensor, labels: np.ndarray[Any, Any]) -> None:
    per_output = outputs[0].numel()
    per_label = int(np.prod(labels.shape[1:], dtype=np.int64))
    if per_output != per_label:
        raise InputError(f"{per_label} targets a sample for {per_output} outputs",
                         "targets must have the shape of the model's output")


def _bce(outputs: Tensor, labels: Tensor) -> Tensor:
    targets = labels.reshape(outputs.shape).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, targets)


def _right_side(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    right = (outputs > 0) == (labels.reshape(outputs.shape) > 0.5)
    return right, torch.ones_like(right)


def _mse_term(
    outputs: Tensor, labels: np.ndarray[Any, Any], _smoothing: float, _ignore: int, _where: str
) -> Made:
    _check_shape(outputs, labels)
    return _mse, lambda _: Regression(), ("rmse", "r2")


def _mse(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(outputs, labels.reshape(outputs.shape).to(outputs.dtype))
