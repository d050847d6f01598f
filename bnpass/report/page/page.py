"""A page that stands for itself: style, script and drawings are in it, nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

from bnpass import __version__
from bnpass.files import atomic_write
from bnpass.report.drawing.svg import STYLE, arrow_heads
from bnpass.report.shown import as_html
from bnpass.report.tables import Table
from bnpass.report.terminal import escaped


@dataclass(frozen=True)
class Card:
    """A number that people look for first.

    Attributes:
        label: what it is.
        value: the number or word.
        note: a line below; may be empty.
        good: True and False colour the value; None does not.
    """

    label: str
    value: str
    note: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading: tables, lines, and HTML that was made safe.

    Attributes:
        title: the heading.
        parts: tables and lines, shown in order.
        html: what comes behind them.
    """

    title: str
    parts: Sequence[Table | str] = ()
    html: str = ""


@dataclass
class Page:
    """A report.

    Attributes:
        title: of the page.
        subtitle: a line below it.
        cards: the numbers that come first.
        sections: the rest; empty ones are left out.
        commands: to repeat it.
    """

    title: str
    subtitle: str = ""
    cards: list[Card] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def html(self) -> str:
        """The document."""
        shown = [s for s in self.sections if s.parts or s.html]
        if self.commands:
            lines = "\n".join(self.commands)
            shown.append(Section("Repeat it", html=f"<pre>{text(lines)}</pre>"))
        style, script = _resource("page.css") + STYLE, _resource("page.js")
        nav = " ".join(f'<a href="#s{i}">{text(s.title)}</a>' for i, s in enumerate(shown))
        return _DOCUMENT.format(
            policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_hash(script)}'",
            title=text(self.title), subtitle=text(self.subtitle), style=style, nav=nav,
            cards="".join(map(_card, self.cards)), heads=arrow_heads(),
            sections="\n".join(_section(i, s) for i, s in enumerate(shown)),
            version=__version__, script=script,
        )  # fmt: skip


def write_page(page: Page, path: Path, *, force: bool = False) -> Path:
    """Write a page in one step.

    Raises:
        OutputError: the file exists and ``force`` is not given.
    """
    return atomic_write(path, page.html(), force=force)


def text(words: str) -> str:
    """Text from anywhere as it may stand in HTML."""
    return escape(escaped(words, keep="\n"))


def _resource(name: str) -> str:
    return files("bnpass.report.page").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"sha256-{digest}"


def _card(card: Card) -> str:
    colour = "" if card.good is None else ' class="good"' if card.good else ' class="bad"'
    note = f'<dd class="note">{text(card.note)}</dd>' if card.note else ""
    return (f'<div class="card"><dt>{text(card.label)}</dt><dd{colour}>{text(card.value)}</dd>'
            f"{note}</div>")  # fmt: skip


def _section(number: int, section: Section) -> str:
    parts = "\n".join(f'<div class="scroll">{as_html(part)}</div>' for part in section.parts)
    return (f'<section id="s{number}"><h2>{text(section.title)}</h2>\n{parts}\n{section.html}'
            "</section>")  # fmt: skip


_DOCUMENT = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="soft">{subtitle}</p>
<dl class="cards">{cards}</dl>
<nav aria-label="sections">{nav}</nav>
<svg width="0" height="0" style="position:absolute" aria-hidden="true">{heads}</svg>
{sections}
<footer>bnpass {version}. This file loads nothing: it can be mailed and kept.</footer>
<div id="tip" role="tooltip" hidden></div>
<script>{script}</script>
</body>
</html>
"""
