"""What happened in a training run: rows of metrics, as CSV and JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bnpass.files import atomic_write, writing

_FIXED = ("step", "epoch", "lr", "loss", "validation_loss", "ms_per_step", "seconds")
_VALIDATION = "validation_"


@dataclass(frozen=True)
class Row:
    """One line of metrics.csv; ``None`` where nothing was measured.

    Attributes:
        step: steps done.
        epoch: passes over the training data done.
        lr: learning rate of the last step.
        loss: mean training loss since the row before.
        metrics: in training since the row before, by name.
        validation_loss: mean loss over the validation data.
        validation: metrics on the validation data, by name.
        ms_per_step: milliseconds a training step took since the row before.
        seconds: time since the start, validation included.
    """

    step: int
    epoch: float
    lr: float
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    validation_loss: float | None = None
    validation: dict[str, float] = field(default_factory=dict)
    ms_per_step: float | None = None
    seconds: float = 0.0

    @property
    def accuracy(self) -> float | None:
        """Share of right answers in training since the row before."""
        return self.metrics.get("accuracy")

    @property
    def validation_accuracy(self) -> float | None:
        """Share of right answers on the validation data."""
        return self.validation.get("accuracy")

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON types, each metric under its name."""
        return {
            "step": self.step, "epoch": self.epoch, "lr": self.lr, "loss": self.loss,
            **self.metrics, "validation_loss": self.validation_loss,
            **{_VALIDATION + name: value for name, value in self.validation.items()},
            "ms_per_step": self.ms_per_step, "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, recorded: dict[str, Any]) -> Row:
        """The row that :meth:`to_dict` wrote."""
        fixed = {name: recorded[name] for name in _FIXED}
        rest = {name: value for name, value in recorded.items() if name not in _FIXED}
        judged = {name.removeprefix(_VALIDATION): value for name, value in rest.items()
                  if name.startswith(_VALIDATION)}
        seen = {name: value for name, value in rest.items() if not name.startswith(_VALIDATION)}
        return cls(**fixed, metrics=seen, validation=judged)


@dataclass
class History:
    """The rows of a run and how it ended.

    Attributes:
        rows: metrics in the order of the steps.
        percentiles: rows ``(step, value, p15, p50, p85)`` of watched values (the paper's Figure 1).
        best_step: step of the best validation, 0 without validation.
        best_score: what it is judged by: the metric (negative where less is better), or minus the
            loss.
        stopped: why the run ended: ``"done"``, ``"patience"`` or ``"diverged"``.
        config: the settings of the run.
        metrics: names of what is measured beside the loss, the one that counts first.
        start_loss: loss of the first step.
        restored: whether the network was left with the weights of the best validation, and with
            the statistics that it was judged with.
    """

    rows: list[Row] = field(default_factory=list)
    percentiles: list[tuple[int, str, float, float, float]] = field(default_factory=list)
    best_step: int = 0
    best_score: float | None = None
    stopped: str = "done"
    config: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    start_loss: float | None = None
    restored: bool = False

    @property
    def validations(self) -> list[Row]:
        """The rows with a validation."""
        return [row for row in self.rows if row.validation_loss is not None]

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the last validation."""
        return self.validations[-1].validation_accuracy if self.validations else None

    @property
    def metric(self) -> str | None:
        """The name of the metric that counts, or None where there is only the loss."""
        return self.metrics[0] if self.metrics else None

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.rows[-1].step if self.rows else 0

    def to_dict(self) -> dict[str, Any]:
        """The run as plain JSON types."""
        plain = {name: value for name, value in asdict(self).items() if name != "rows"}
        return {"rows": [row.to_dict() for row in self.rows], **plain,
                "metrics": list(self.metrics),
                "percentiles": [list(row) for row in self.percentiles]}

    @classmethod
    def from_dict(cls, recorded: dict[str, Any]) -> History:
        """The run that :meth:`to_dict` wrote."""
        rows = [Row.from_dict(row) for row in recorded["rows"]]
        percentiles = [tuple(row) for row in recorded["percentiles"]]
        return cls(**{**recorded, "rows": rows, "percentiles": percentiles,
                      "metrics": tuple(recorded["metrics"])})

    def columns(self) -> list[str]:
        """The header of metrics.csv."""
        return ["step", "epoch", "lr", "loss", *self.metrics, "validation_loss",
                *(_VALIDATION + name for name in self.metrics), "ms_per_step", "seconds"]

    def to_csv(self) -> str:
        """The rows as CSV with a header; empty where nothing was measured."""
        columns = self.columns()
        return _csv(columns, [[row.to_dict().get(c) for c in columns] for row in self.rows])

    def percentiles_to_csv(self) -> str:
        """The percentiles of watched values as CSV with a header."""
        return _csv(["step", "value", "p15", "p50", "p85"], [list(r) for r in self.percentiles])

    def write(self, folder: Path) -> None:
        """Write metrics.csv, and percentiles.csv where values were watched, into a folder."""
        atomic_write(folder / "metrics.csv", self.to_csv())
        if self.percentiles:
            atomic_write(folder / "percentiles.csv", self.percentiles_to_csv())

    def append_last(self, folder: Path) -> None:
        """Add the last row to a folder's metrics.csv, which then shows it at once."""
        path, row = folder / "metrics.csv", self.rows[-1].to_dict()
        with writing(path), path.open("a", encoding="utf-8") as stream:
            stream.write(_csv([row.get(c) for c in self.columns()], []))


def _csv(header: list[Any], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(["" if v is None else v for v in row] for row in (header, *rows))
    return text.getvalue()
