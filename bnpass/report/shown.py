"""Objects that people print: tables in a terminal and in a notebook, one line as ``repr``."""

from __future__ import annotations

import io
from collections.abc import Iterable
from html import escape

from bnpass.report.tables import Table, render
from bnpass.report.terminal import escaped


class Shown:
    """A plan or a report whose ``str`` is what the command prints of it."""

    def shown(self) -> Iterable[Table | str]:
        """Tables and lines, the last line the sum of it all."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(as_text(part) for part in self.shown())

    def __repr__(self) -> str:
        last = [part for part in self.shown() if isinstance(part, str)][-1]
        return f"<{type(self).__name__}: {escaped(last)}>"

    def _repr_html_(self) -> str:
        return "\n".join(as_html(part) for part in self.shown())


def as_text(part: Table | str) -> str:
    """A table as a terminal shows it, or a line."""
    if isinstance(part, str):
        return escaped(part)
    out = io.StringIO()
    render(part, out)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def as_html(part: Table | str) -> str:
    """A table as HTML without any style, or a paragraph."""
    if isinstance(part, str):
        return f"<p>{_safe(part)}</p>"
    head = "".join(_cell("th", heading, i in part.right) for i, heading in enumerate(part.columns))
    rows = "".join(
        f"<tr>{''.join(_cell('td', cell, i in part.right) for i, cell in enumerate(row))}</tr>\n"
        for row in part.rows
    )
    caption = f"<caption>{_safe(part.title)}</caption>" if part.title else ""
    note = f"<p>{_safe(part.note)}</p>" if part.note else ""
    return (f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>{note}")


def _cell(tag: str, content: str, right: bool) -> str:
    style = ' style="text-align:right"' if right else ""
    return f"<{tag}{style}>{_safe(content)}</{tag}>"


def _safe(text: str) -> str:
    return escape(escaped(text))
