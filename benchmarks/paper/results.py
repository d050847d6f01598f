"""The table: what each experiment claims, and what was reached; Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnpass.files import atomic_write
from bnpass.report.document import to_json

HEADER = ("experiment", "without BN", "with BN", "reached", "aim")


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        experiment: what was compared.
        plain, bn: the two arms in words.
        reached: the number that the aim speaks of.
        aim: of this project.
        ok: whether it was reached; ``None`` where there is no aim.
        numbers: everything measured, JSON types.
    """

    experiment: str
    plain: str
    bn: str
    reached: str
    aim: str = ""
    ok: bool | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """One experiment.

    Attributes:
        name: of the row, for ``--only``.
        lines: of the table.
        seconds: what it took.
        note: why there are no lines.
        cpu: seconds of processor time, which other work on the machine does not lengthen.
        failed: an error or a signal ended it.
    """

    name: str
    lines: list[Line] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""
    cpu: float = 0.0
    failed: bool = False


def percent(share: float) -> str:
    """``0.97312`` as ``97.31 %``."""
    return f"{100 * share:.2f} %"


def times(ratio: float | None, most: float | None = None) -> str:
    """How many times fewer steps; ``most`` is the largest ratio that was tried."""
    if ratio is None:
        return "not reached"
    return f"{'>= ' if most is not None and ratio >= 0.99 * most else ''}{ratio:.1f}x fewer steps"


def markdown(results: Sequence[Result], head: str) -> str:
    """The table, with what every row took below it."""
    rows = [HEADER, ("---",) * len(HEADER)]
    for result in results:
        rows += [(x.experiment, x.plain, x.bn, x.reached, _aim(x)) for x in result.lines]
        if not result.lines:
            rows.append((result.name, "", "", result.note or "no result", ""))
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    took = "\n".join(f"* {r.name}: {r.seconds:.0f} s, processor {r.cpu:.0f} s" for r in results)
    return f"# The paper's experiments\n\n{head}\n\n{table}\n\nTime for each row:\n\n{took}\n"


def _aim(line: Line) -> str:
    word = {True: " (reached)", False: " (not reached)", None: ""}[line.ok]
    return line.aim + word


def write_all(results: Sequence[Result], out: Path, head: str) -> None:
    """``table.md``, ``table.json`` and ``table.csv``, each in one step."""
    atomic_write(out / "table.md", markdown(results, head))
    document = {"about": head, "rows": [
        {"name": r.name, "seconds": round(r.seconds, 1), "cpu": round(r.cpu, 1), "note": r.note,
         "lines": [vars(line) for line in r.lines]} for r in results]}
    atomic_write(out / "table.json", to_json(document) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", *HEADER))
    for r in results:
        writer.writerows((r.name, x.experiment, x.plain, x.bn, x.reached, x.aim) for x in r.lines)
    atomic_write(out / "table.csv", text.getvalue())
