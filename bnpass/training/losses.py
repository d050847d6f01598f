"""What a network is trained to make small, and what counts as a right answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional as F

from bnpass.data.callables import load_callable
from bnpass.data.labels import check_labels
from bnpass.errors import InputError
from bnpass.nn import distributed
from bnpass.training.outputs import first_output, split_ending

Tensor = torch.Tensor


@dataclass(frozen=True)
class Objective:
    """A network's view to train, and how its output is judged.

    Attributes:
        module: the network, cut in front of a final Softmax, LogSoftmax or Sigmoid where the loss
            takes logits; it shares its parameters with the network.
        name: ``"cross_entropy"``, ``"bce"``, ``"mse"`` or the name of people's own loss.
        loss: ``(outputs, labels)`` to the mean over the samples, a scalar.
        correct: ``(outputs, labels)`` to the share of right answers of each sample ``(n,)``, or
            ``None`` where there is no such thing.
    """

    module: fx.GraphModule
    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor] | None


class Tally:
    """Loss and right answers since the last report, summed on the device without waiting for it."""

    def __init__(self) -> None:
        self.loss: Tensor | float = 0.0
        self.right: Tensor | float = 0.0
        self.judged = False
        self.seen = self.steps = 0

    def add(self, goal: Objective, loss: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Take in a batch."""
        self.loss = self.loss + loss.double() * len(labels)
        self.seen += len(labels)
        if goal.correct is not None:
            self.judged = True
            self.right = self.right + goal.correct(outputs, labels).double().sum()

    def means(self) -> tuple[float, float | None]:
        """Mean loss and share of right answers over all processes."""
        loss, right, seen = distributed.total(float(self.loss), float(self.right), self.seen)
        return loss / seen, right / seen if self.judged else None


def objective(
    gm: fx.GraphModule, labels: np.ndarray[Any, Any], sample: Tensor, *, loss: str = "auto",
    label_smoothing: float = 0.0, where: str = "labels",
) -> Objective:
    """Choose the loss and check that the labels fit the network's output.

    ``"auto"`` takes the cross entropy for class labels, binary cross entropy for a single output
    (or for targets in front of a Sigmoid), and the mean squared error for other targets. The
    network is trained on the value in front of a final Softmax, LogSoftmax or Sigmoid, except for
    ``mse`` and people's own losses, which get the output as it is.

    Args:
        gm: the network.
        labels: all labels, int64 classes or float32 targets.
        sample: a few samples to run the network with.
        loss: one of the names above or ``"package.module:loss"``.
        label_smoothing: share of the probability that goes to all classes alike.
        where: named in messages, which also warn of a class without a sample.

    Raises:
        InputError: labels do not fit the outputs.
    """
    view, ending = split_ending(gm)
    outputs = _probe(view, sample)
    name = _choose(outputs, labels, ending) if loss == "auto" else loss
    if name == "cross_entropy":
        check_labels(labels, _class_count(outputs, labels), where=where)
        return Objective(view, name, _cross_entropy(label_smoothing), _right_class)
    if name == "bce":
        _check_binary(outputs, labels)
        return Objective(view, name, _bce, _right_side)
    plain = first_output(gm)
    if name == "mse":
        _check_shape(_probe(plain, sample), labels)
        return Objective(plain, name, _mse, None)
    return Objective(plain, name, load_callable(name), None)


def _probe(module: fx.GraphModule, sample: Tensor) -> Tensor:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            output = module(sample)
    finally:
        for part, mode in modes:
            part.training = mode
    assert isinstance(output, Tensor)
    return output


def _choose(outputs: Tensor, labels: np.ndarray[Any, Any], ending: str) -> str:
    whole = labels.dtype.kind in "iu"
    per_sample = outputs[0].numel() if len(outputs) else 0
    if whole and per_sample == 1:
        return "bce"
    if whole and labels.ndim < outputs.ndim:
        return "cross_entropy"
    in_range = labels.size and labels.min() >= 0 and labels.max() <= 1
    return "bce" if ending == "sigmoid" and in_range else "mse"


def _class_count(outputs: Tensor, labels: np.ndarray[Any, Any]) -> int:
    return int(outputs.shape[-1] if _classes_last(outputs, labels.shape) else outputs.shape[1])


def _classes_last(outputs: Tensor, labels: tuple[int, ...]) -> bool:
    """Whether the classes are the last axis, as in ``(n, tokens, classes)``; images have them 1."""
    if outputs.ndim < 2 or len(labels) != outputs.ndim - 1:
        raise InputError(f"labels of shape {list(labels)} do not fit outputs of shape "
                         f"{list(outputs.shape)}", "give one class number for each prediction")
    return outputs.ndim > 2 and tuple(outputs.shape[1:-1]) == tuple(labels[1:])


def _cross_entropy(smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(_classes_first(outputs, labels), labels, label_smoothing=smoothing)

    return loss


def _classes_first(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.movedim(-1, 1) if _classes_last(outputs, tuple(labels.shape)) else outputs


def _right_class(outputs: Tensor, labels: Tensor) -> Tensor:
    right = _classes_first(outputs, labels).argmax(1) == labels
    return right.reshape(len(labels), -1).float().mean(1)


def _check_binary(outputs: Tensor, labels: np.ndarray[Any, Any]) -> None:
    _check_shape(outputs, labels)
    if labels.size and (labels.min() < 0 or labels.max() > 1):
        raise InputError(f"labels from {labels.min():g} to {labels.max():g} for yes-or-no outputs",
                         "bce takes labels from 0 to 1; use cross_entropy for classes")


def _check_shape(outputs: Tensor, labels: np.ndarray[Any, Any]) -> None:
    per_output = outputs[0].numel()
    per_label = int(np.prod(labels.shape[1:], dtype=np.int64))
    if per_output != per_label:
        raise InputError(f"{per_label} targets a sample for {per_output} outputs",
                         "targets must have the shape of the model's output")


def _bce(outputs: Tensor, labels: Tensor) -> Tensor:
    targets = labels.reshape(outputs.shape).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, targets)


def _right_side(outputs: Tensor, labels: Tensor) -> Tensor:
    right = (outputs > 0) == (labels.reshape(outputs.shape) > 0.5)
    return right.reshape(len(labels), -1).float().mean(1)


def _mse(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(outputs, labels.reshape(outputs.shape).to(outputs.dtype))
