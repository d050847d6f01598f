"""Progress on stderr: a bar on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from bnpass.report import streams
from bnpass.report.terminal import one_line

LINE_EVERY = 3.0
"""Seconds between two plain lines."""


class ProgressBar(Protocol):
    """Something that is told how far the work is."""

    def update(self, done: int, note: str = "") -> None:
        """``done`` steps are behind; ``note`` is shown beside the count (loss, accuracy)."""


class _Silent:
    def update(self, done: int, note: str = "") -> None:
        pass


class _Lines:
    """A line at the first step, every few seconds, and at the last step."""

    def __init__(self, title: str, total: int | None) -> None:
        self.title = title
        self.total = total
        self.next = 0.0

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now < self.next and done != self.total:
            return
        self.next = now + LINE_EVERY
        of = f"/{self.total}" if self.total else ""
        line = one_line(f"{self.title}: {done}{of} {note}".rstrip())
        streams.write(sys.stderr, f"{line}\n", flush=True)


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self.bar = bar
        self.task = task

    def update(self, done: int, note: str = "") -> None:
        self.bar.update(self.task, completed=done, note=note)


@contextlib.contextmanager
def open_progress(title: str, total: int | None, *, quiet: bool = False) -> Iterator[ProgressBar]:
    """Yield a :class:`ProgressBar` that suits stderr."""
    if quiet:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(title, total)
    else:
        from rich import progress as rich_progress
        from rich.console import Console

        columns = (
            rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(), rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[note]}"),
        )
        with rich_progress.Progress(*columns, console=Console(file=sys.stderr)) as bar:
            yield _Bar(bar, bar.add_task(title, total=total, note=""))
