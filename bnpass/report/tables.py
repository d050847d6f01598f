"""Tables on a terminal or in a pipe, through rich."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from bnpass.report.terminal import CELL, one_line

PIPE_WIDTH = 160
"""Columns where there is no terminal to ask."""


_GAP = 3  # characters between two columns
_TURNED = 3  # rows up to which a table that is too wide is turned


@dataclass
class Table:
    """A table: a title, column headings, rows of text, and what stands below.

    Attributes:
        title: one line above; may be empty.
        columns: headings.
        rows: as many texts each as there are columns.
        right: indices of the columns with numbers, aligned to the right.
        note: a line below; may be empty.
        framed: a box around it.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    right: frozenset[int] = frozenset()
    note: str = ""
    framed: bool = False

    def add(self, *cells: object) -> None:
        """Add a row; cells are shown by :func:`text`."""
        self.rows.append([text(cell) for cell in cells])


def text(value: object) -> str:
    """A cell: 4 significant digits, thousands apart, None as a dash, sequences with commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list):
        return ", ".join(text(item) for item in value)
    return str(value)


SHARES = frozenset({"accuracy", "f1", "map", "miou"})
"""Metrics that are shares of 1, shown as percent; R2 and errors are plain numbers."""


def is_share(metric: str) -> bool:
    """Whether a metric is shown as percent."""
    return metric.rpartition(".")[2] in SHARES


def measure(metric: str, value: float | None) -> str:
    """A metric as people read it: shares in percent, else four digits."""
    if value is None or not is_share(metric):
        return "-" if value is None else f"{value:.4g}"
    return percent(value)


def percent(value: float | None) -> str:
    """A share between 0 and 1 as percent with two decimals."""
    return "-" if value is None else f"{100 * value:.2f} %"


def size(count: int) -> str:
    """A number of bytes in the unit that people read."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"


def render(table: Table, file: TextIO, terminal: TextIO | None = None) -> None:
    """Write a table; NO_COLOR and a stream that is no terminal get plain text.

    Args:
        table: what is written; its texts may hold anything (see :mod:`bnpass.report.terminal`).
        file: where it is written.
        terminal: the stream where it will be shown, if another one.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = _Held(terminal or file)
    room = None if shown.isatty() else width()
    console = Console(file=shown, width=room, highlight=False)
    table = _fitting(table, console.width)
    rich_table = RichTable(
        title=_safe(table.title) or None, title_justify="left",
        box=box.ROUNDED if table.framed else box.SIMPLE_HEAD, pad_edge=table.framed,
        caption=_safe(table.note) or None, caption_justify="left", title_style="bold",
    )
    for index, heading in enumerate(table.columns):
        rich_table.add_column(
            _safe(heading), justify="right" if index in table.right else "left", overflow="fold"
        )
    for row in table.rows:
        rich_table.add_row(*(_safe(cell) for cell in row))
    console.print(rich_table)
    file.write(shown.getvalue())


def width() -> int:
    """Columns of the terminal, or those that a pipe gets."""
    return shutil.get_terminal_size((PIPE_WIDTH, 24)).columns


def _fitting(table: Table, room: int) -> Table:
    """The table, or one with its columns as rows where those do not fit and there are few rows."""
    columns = zip(table.columns, *table.rows, strict=True)
    natural = sum(max(map(len, column)) + _GAP for column in columns)
    if natural <= room or not 0 < len(table.rows) <= _TURNED or len(table.columns) <= _TURNED:
        return table
    head = [table.columns[0], *(row[0] for row in table.rows)]
    rows: list[Sequence[str]] = [
        [name, *(row[i] for row in table.rows)] for i, name in enumerate(table.columns) if i
    ]
    right = frozenset(range(1, len(head)))
    return Table(table.title, head, rows, right, table.note, table.framed)


class _Held(io.StringIO):
    """What rich writes for a stream, held back: it would leave the process on a closed pipe."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's: it decides with what lines are drawn."""
        return self._stream.encoding or "utf-8"


def _safe(text: str) -> str:
    """Text as it may stand in a cell, no markup."""
    from rich.markup import escape

    return escape(one_line(text, CELL))
