"""Progress on stderr: a bar on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from bnpass.report import streams
from bnpass.report.terminal import one_line

LINE_EVERY = 10.0
"""Seconds between two plain lines."""


_WIDE = 100  # columns from which on there is room for metrics


class ProgressBar(Protocol):
    """Something that is told how far the work is."""

    def update(self, done: int, note: str = "") -> None:
        """``done`` steps are behind; ``note`` is shown beside the count (loss, accuracy)."""


class _Silent:
    def update(self, done: int, note: str = "") -> None:
        pass


class _Lines:
    """A line at the first step, every few seconds, and at the last step, with the time left."""

    def __init__(self, title: str, total: int | None) -> None:
        self.title = title
        self.total = total
        self.start = time.monotonic()
        self.next = 0.0

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now < self.next and done != self.total:
            return
        self.next = now + LINE_EVERY
        of = f"/{self.total:,}" if self.total else ""
        parts = (f"{self.title}: {done:,}{of}", self._left(done, now), note)
        line = one_line(", ".join(part for part in parts if part))
        streams.write(sys.stderr, f"{line}\n", flush=True)

    def _left(self, done: int, now: float) -> str:
        if not self.total or not 0 < done < self.total or now <= self.start:
            return ""
        return f"{duration((now - self.start) / done * (self.total - done))} left"


def duration(seconds: float) -> str:
    """``12 s``, ``3:05 min`` or ``2:00 h``: one unit for each size."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{whole // 60}:{whole % 60:02} min" if whole < 6000 else \
        f"{minutes // 60}:{minutes % 60:02} h"


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

        console = Console(file=sys.stderr)
        columns = [
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(40 if console.width >= _WIDE else 10),
            rich_progress.MofNCompleteColumn(), rich_progress.TimeRemainingColumn(),
        ]
        if console.width >= _WIDE:  # where it is narrow, metrics go first
            columns.append(rich_progress.TextColumn("{task.fields[note]}"))
        with rich_progress.Progress(*columns, console=console) as bar:
            yield _Bar(bar, bar.add_task(title, total=total, note=""))
