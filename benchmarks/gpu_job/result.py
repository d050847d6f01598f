"""What the benchmark found: rows of one table, each with what it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bnpass.report.tables import Table
from bnpass.runtime.bench import ratio_of


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: which step of the job.
        what: what was measured.
        value: the figure, with its unit.
        against: what the ratio compares with.
        ratio: time over the other's time: below 1 is faster.
        low, high: 95% bootstrap interval of the ratio, where rounds were paired.
    """

    part: str
    what: str
    value: str
    against: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass
class Result:
    """All rows, what failed and what was left out; ``seconds`` bounds the whole."""

    seconds: float
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def add(self, *cells: Any, **more: Any) -> None:
        """Add a :class:`Row`."""
        self.rows.append(Row(*cells, **more))

    def left(self) -> float:
        """Return the seconds that remain of the budget."""
        return self.seconds - (time.perf_counter() - self.start)

    @contextmanager
    def part(self, name: str, log: Callable[[str], None]) -> Any:
        """Run a step of the job; what it raises is noted, and the steps behind it still run."""
        begin, known = time.perf_counter(), len(self.rows)
        log(f"{name} ...")
        try:
            yield
        except Exception as error:  # noqa: BLE001  (a benchmark reports every fault it meets)
            lines = str(error).strip().splitlines() or [""]
            self.failures.append(f"{name}: {type(error).__name__}: {lines[0]}")
            log(f"{name} FAILED: {type(error).__name__}: {error}")
        self.parts[name] = time.perf_counter() - begin
        for row in self.rows[known:]:
            ratio = "" if row.ratio is None else f", {row.ratio:.3f} of {row.against}"
            log(f"  {row.part}: {row.what}: {row.value}{ratio}")
        log(f"{name}: {self.parts[name]:.1f} s")

    def timed(
        self, part: str, times: Mapping[str, Any], count: int, unit: str, against: Mapping[str, str]
    ) -> None:
        """Add a row of throughput for each entry of ``times``, with ratios to others of them.

        Args:
            part: which step of the job.
            times: seconds of each round, by label; round i of all of them ran side by side.
            count: samples in a round; 0 shows the time itself, in milliseconds.
            unit: of the figure, e.g. ``"images/s"``.
            against: the label that a label is compared with.
        """
        generator = np.random.default_rng(0)
        for label, values in times.items():
            middle = float(np.median(values))
            value = f"{count / middle if count else 1e3 * middle:,.0f} {unit}"
            other = against.get(label)
            if other is None or other not in times:
                self.add(part, label, value)
            else:
                self.add(part, label, value, other, *ratio_of(values, times[other], generator))

    def table(self, title: str) -> Table:
        """Return the one table that is printed."""
        note = "ratio: time over the other's time, below 1 is faster; [95% interval]"
        columns = ("part", "what", "value", "against", "ratio", "95%")
        table = Table(title, columns, right=frozenset((2, 4)), note=note)
        before = ""
        for row in self.rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            spread = "" if row.low is None else f"[{row.low:.3f}, {row.high:.3f}]"
            part = "" if row.part == before else row.part
            before = row.part
            table.add(part, row.what, row.value, row.against, ratio, spread)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything; JSON-able."""
        return {
            "passed": not self.failures,
            "rows": [asdict(row) for row in self.rows],
            "failures": self.failures,
            "notes": self.notes,
            "seconds_by_part": {k: round(v, 3) for k, v in self.parts.items()},
            "seconds": round(time.perf_counter() - self.start, 3),
        }


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    wait: Callable[[], object],
    *,
    rounds: int,
    seconds: float,
    warmup: int = 3,
) -> dict[str, Any]:
    """Time calls side by side: every round runs each of them once, in a random order.

    Args:
        calls: what is timed, by label.
        wait: waits for the device, before and after each call.
        rounds: how many are timed; fewer when ``seconds`` are over, at least 3.
        seconds: time limit.
        warmup: untimed rounds.

    Returns:
        Seconds ``(rounds,)`` by label.
    """
    generator = np.random.default_rng(0)
    labels = list(calls)
    times: dict[str, list[float]] = {label: [] for label in labels}
    start = time.perf_counter()
    for index in range(warmup + rounds):
        for place in generator.permutation(len(labels)):
            wait()
            begin = time.perf_counter()
            calls[labels[place]]()
            wait()
            if index >= warmup:
                times[labels[place]].append(time.perf_counter() - begin)
        if index >= warmup + 2 and time.perf_counter() - start > seconds:
            break
    return {label: np.array(values) for label, values in times.items()}
