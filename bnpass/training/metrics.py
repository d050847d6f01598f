"""What is reported beside the loss: the field's measure for the task, summed over batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from bnpass.data.callables import load_callable
from bnpass.data.trees import arrays, count
from bnpass.errors import InputError
from bnpass.nn import distributed

Tensor = torch.Tensor

LOWER = frozenset({"rmse"})
"""Metrics of which less is better."""


class Metric(Protocol):
    """Takes in batches, and says what it found over all of them and over all processes."""

    def add(self, outputs: Any, targets: Any) -> None:
        """Take in a batch: what the loss gets."""

    def values(self) -> dict[str, float]:
        """The measures by name, the one that counts first; none where nothing was seen."""


@dataclass
class Accuracy:
    """Share of right answers; those to targets that are ignored do not count."""

    correct: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    right: Any = 0.0
    seen: Any = 0.0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        right, counted = self.correct(outputs, targets)
        self.right = self.right + (right & counted).sum().double()
        self.seen = self.seen + counted.sum().double()

    def values(self) -> dict[str, float]:
        """``accuracy``."""
        right, seen = distributed.total(float(self.right), float(self.seen))
        return {"accuracy": right / seen} if seen else {}


@dataclass
class Regression:
    """Root of the mean squared error, and the share of the variance that is explained."""

    sums: Any = 0.0
    seen: int = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        y = targets.reshape(len(targets), -1).double()
        error = (outputs.reshape(y.shape).double() - y).square().sum(0)
        self.sums = self.sums + torch.stack([error, y.sum(0), y.square().sum(0)])
        self.seen += len(y)

    def values(self) -> dict[str, float]:
        """``rmse`` and ``r2`` (over all targets; each one's own mean is what it is judged by)."""
        if not self.seen:
            return {}
        flat = self.sums.reshape(-1).tolist()
        *summed, seen = distributed.total(*flat, self.seen)
        error, total, squares = torch.tensor(summed, dtype=torch.float64).reshape(3, -1)
        spread = float((squares - total.square() / seen).sum())
        wrong = float(error.sum())
        found = {"rmse": math.sqrt(wrong / (seen * len(error)))}
        return {**found, "r2": 1 - wrong / spread} if spread > 0 else found


@dataclass
class MultiLabel:
    """F1 over all labels at the threshold 0 (of logits), and with ``ranked`` the mean AP."""

    ranked: bool = False
    counts: Any = 0.0
    scores: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        yes, wanted = outputs > 0, targets.reshape(outputs.shape) > 0.5
        found = [(yes & wanted).sum(), (yes & ~wanted).sum(), (~yes & wanted).sum()]
        self.counts = self.counts + torch.stack(found).double()
        if self.ranked:
            flat = (outputs.reshape(len(outputs), -1), wanted.reshape(len(outputs), -1))
            self.scores.append((flat[0].float().cpu(), flat[1].cpu()))

    def values(self) -> dict[str, float]:
        """``f1``, and ``map`` where it is ``ranked``."""
        if isinstance(self.counts, float):
            return {}
        right, false, missed = distributed.total(*self.counts.tolist())
        found = {"f1": 2 * right / max(1.0, 2 * right + false + missed)}
        parts = [pair for theirs in distributed.gather(self.scores) for pair in theirs]
        if parts:
            found["map"] = mean_average_precision(torch.cat([s for s, _ in parts]),
                                                  torch.cat([w for _, w in parts]))
        return found


def mean_average_precision(scores: Tensor, wanted: Tensor) -> float:
    """Mean over the labels that occur of the average precision; ``(n, labels)`` each."""
    order = scores.argsort(stable=True, dim=0, descending=True)
    hits = wanted.double().gather(0, order)
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, dtype=torch.float64)[:, None]
    occurring = hits.sum(0) > 0
    each = (precision * hits).sum(0)[occurring] / hits.sum(0)[occurring]
    return float(each.mean()) if len(each) else math.nan


@dataclass
class MeanIoU:
    """Mean over the classes of intersection over union, and the share of right pixels."""

    classes: int
    predicted: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    confusion: Any = 0.0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        guess, counted = self.predicted(outputs, targets)
        index = targets[counted] * self.classes + guess[counted]
        self.confusion = self.confusion + torch.bincount(index, minlength=self.classes**2)

    def values(self) -> dict[str, float]:
        """``miou`` (over the classes that occur or are guessed) and ``accuracy``."""
        if isinstance(self.confusion, float):
            return {}
        summed = distributed.total(*self.confusion.double().tolist())
        table = torch.tensor(summed, dtype=torch.float64).reshape(self.classes, self.classes)
        both = table.diagonal()
        union = table.sum(0) + table.sum(1) - both
        there = union > 0
        if not there.any():
            return {}
        return {"miou": float((both[there] / union[there]).mean()),
                "accuracy": float(both.sum() / table.sum())}


@dataclass
class Own:
    """A function of people's own: ``(outputs, targets)`` of a batch to a number.

    The mean over the samples is reported. What has ``update`` and ``compute`` (torchmetrics) is fed
    batch by batch instead, and asked once.
    """

    spec: str
    function: Any
    sums: Any = 0.0
    seen: int = 0

    @property
    def name(self) -> str:
        """What it is called in tables: the function's name."""
        return self.spec.rpartition(":")[2]

    def add(self, outputs: Any, targets: Any) -> None:
        """Take in a batch."""
        samples = count(targets) or count(outputs) or 1
        with blamed(self.spec, "metric", outputs, targets):
            if hasattr(self.function, "update"):
                self._moved(outputs)
                self.function.update(outputs, targets)
            else:
                self.sums += float(self.function(outputs, targets)) * samples
        self.seen += samples

    def values(self) -> dict[str, float]:
        """The number, by the function's name."""
        if not self.seen:
            return {}
        if hasattr(self.function, "compute"):
            return {self.name: self._computed()}
        total, seen = distributed.total(self.sums, self.seen)
        return {self.name: total / seen}

    def _moved(self, outputs: Any) -> None:
        """A module holds its sums itself (torchmetrics): where the outputs are."""
        tensor = next((t for t in arrays(outputs) if isinstance(t, Tensor)), None)
        if isinstance(self.function, torch.nn.Module) and tensor is not None:
            self.function.to(tensor.device)

    def _computed(self) -> float:
        found = None
        try:
            found = self.function.compute()
            return float(found)
        except Exception as error:
            what = f"failed: {type(error).__name__}: {error}" if found is None else \
                f"computed {described(found)}"
            raise InputError(f"{self.spec} {what}", "compute returns one number") from error


class Nothing:
    """Measures nothing."""

    def add(self, _outputs: Any, _targets: Any) -> None:
        """Nothing to do."""

    def values(self) -> dict[str, float]:
        """None."""
        return {}


def own_metric(spec: str) -> Callable[[bool], Metric]:
    """The maker of a metric that ``package.module:callable`` names.

    A class, or a function without arguments, makes an object with ``update`` and ``compute``.
    """
    function = load_callable(spec)
    makes = isinstance(function, type) or not _wants_arguments(function)
    if makes:
        _made(spec, function)  # what is wrong with it is said before the first step
    return lambda ranked: Own(spec, function() if makes else function) if ranked else Nothing()


def _made(spec: str, function: Callable[..., Any]) -> None:
    try:
        function()
    except Exception as error:
        raise InputError(f"{spec} cannot be made without arguments: {error}",
                         "name a function of your own without arguments that returns the metric"
                         ) from error


def _wants_arguments(function: Callable[..., Any]) -> bool:
    import inspect

    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:
        return True
    return False


class blamed:  # noqa: N801 - a context manager that reads as a word
    """Reports an exception of people's own code as theirs, with what it was given.

    Args:
        spec: names the function.
        what: ``"loss"`` or ``"metric"``.
        outputs: what it got.
        targets: what it got.
    """

    def __init__(self, spec: str, what: str, outputs: Any, targets: Any) -> None:
        self.spec, self.what, self.given = spec, what, (outputs, targets)

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            text = str(error).strip().splitlines()
            outputs, targets = (described(value) for value in self.given)
            raise InputError(
                f"{self.spec} failed: {type(error).__name__}" + (f": {text[0]}" if text else ""),
                f"the {self.what} gets outputs {outputs} and targets {targets}") from error


def described(value: Any) -> str:
    """Shapes and names in one line: ``{boxes: float32[8, 4], classes: float32[8, 3]}``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {described(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(described(v) for v in value) + ")"
    return type(value).__name__


def merit(values: dict[str, float], loss: float) -> float:
    """One number to compare runs by, the higher the better: the first metric, or the loss."""
    if not values:
        return -loss
    name, value = next(iter(values.items()))
    return -value if name.rpartition(".")[2] in LOWER else value


