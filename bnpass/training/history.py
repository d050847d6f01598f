"""What happened in a training run: rows of metrics, as CSV and JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bnpass.files import atomic_write, writing


@dataclass(frozen=True)
class Row:
    """One line of metrics.csv; ``None`` where nothing was measured.

    Attributes:
        step: steps done.
        epoch: passes over the training data done.
        lr: learning rate of the last step.
        loss: mean training loss since the row before.
        accuracy: share of right answers in training since the row before.
        validation_loss: mean loss over the validation data.
        validation_accuracy: share of right answers on the validation data.
        ms_per_step: milliseconds a training step took since the row before.
        seconds: time since the start, validation included.
    """

    step: int
    epoch: float
    lr: float
    loss: float
    accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    ms_per_step: float | None = None
    seconds: float = 0.0


@dataclass
class History:
    """The rows of a run and how it ended.

    Attributes:
        rows: metrics in the order of the steps.
        percentiles: rows ``(step, value, p15, p50, p85)`` of watched values (the paper's Figure 1).
        best_step: step of the best validation, 0 without validation.
        best_score: its accuracy (or minus its loss, where there is no accuracy).
        stopped: why the run ended: ``"done"``, ``"patience"`` or ``"diverged"``.
        config: the settings of the run.
    """

    rows: list[Row] = field(default_factory=list)
    percentiles: list[tuple[int, str, float, float, float]] = field(default_factory=list)
    best_step: int = 0
    best_score: float | None = None
    stopped: str = "done"
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def validations(self) -> list[Row]:
        """The rows with a validation."""
        return [row for row in self.rows if row.validation_loss is not None]

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the last validation."""
        return self.validations[-1].validation_accuracy if self.validations else None

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.rows[-1].step if self.rows else 0

    def to_dict(self) -> dict[str, Any]:
        """The run as plain JSON types."""
        return asdict(self) | {"percentiles": [list(row) for row in self.percentiles]}

    @classmethod
    def from_dict(cls, recorded: dict[str, Any]) -> History:
        """The run that :meth:`to_dict` wrote."""
        rows = [Row(**row) for row in recorded["rows"]]
        percentiles = [tuple(row) for row in recorded["percentiles"]]
        return cls(**{**recorded, "rows": rows, "percentiles": percentiles})

    def to_csv(self) -> str:
        """The rows as CSV with a header; empty where nothing was measured."""
        return _csv([f.name for f in fields(Row)], [list(asdict(r).values()) for r in self.rows])

    def percentiles_to_csv(self) -> str:
        """The percentiles of watched values as CSV with a header."""
        return _csv(["step", "value", "p15", "p50", "p85"], [list(r) for r in self.percentiles])

    def write(self, folder: Path) -> None:
        """Write metrics.csv, and percentiles.csv where values were watched, into a folder."""
        atomic_write(folder / "metrics.csv", self.to_csv())
        if self.percentiles:
            atomic_write(folder / "percentiles.csv", self.percentiles_to_csv())


def append_row(folder: Path, row: Row) -> None:
    """Add a row to a folder's metrics.csv, which then shows it at once."""
    path = folder / "metrics.csv"
    with writing(path), path.open("a", encoding="utf-8") as stream:
        stream.write(_csv(["" if v is None else v for v in asdict(row).values()], []))


def _csv(header: list[Any], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if v is None else v for v in row] for row in rows)
    return text.getvalue()
