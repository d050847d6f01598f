"""Tables on a terminal or in a pipe, through rich."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

PIPE_WIDTH = 160
"""Columns where there is no terminal to ask."""


@dataclass
class Table:
    """A table: a title, column headings, rows of text, and what stands below.

    Attributes:
        title: one line above; may be empty.
        columns: headings.
        rows: as many texts each as there are columns.
        right: indices of the columns with numbers, aligned to the right.
        note: a line below; may be empty.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    right: frozenset[int] = frozenset()
    note: str = ""

    def add(self, *cells: object) -> None:
        """Add a row; cells are shown by :func:`text`."""
        self.rows.append([text(cell) for cell in cells])


def text(value: object) -> str:
    """A cell: floats with 4 significant digits, None as a dash, sequences with commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list):
        return ", ".join(text(item) for item in value)
    return str(value)


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


def render(table: Table, file: TextIO) -> None:
    """Write a table; NO_COLOR and a stream that is no terminal get plain text."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    rich_table = RichTable(
        title=escape(table.title) or None, title_justify="left", box=box.SIMPLE_HEAD,
        caption=escape(table.note) or None, caption_justify="left", title_style="bold",
    )
    for index, heading in enumerate(table.columns):
        rich_table.add_column(
            escape(heading), justify="right" if index in table.right else "left", overflow="fold"
        )
    for row in table.rows:
        rich_table.add_row(*(escape(cell) for cell in row))
    width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if not file.isatty() else None
    console = Console(file=file, width=width, highlight=False)
    with console.capture() as captured:  # rich itself would leave the process on a closed pipe
        console.print(rich_table)
    file.write(captured.get())
