"""What is being done, for whoever waits: nothing in the first second, then a line on stderr."""

from __future__ import annotations

import sys
import threading
import time

from bnpass.report import streams
from bnpass.report.terminal import one_line

QUIET = 1.0
"""Seconds before anything is said."""

AGAIN = 10.0
"""Seconds between two lines where stderr is no terminal."""

_TICK = 0.5  # seconds between two looks on a terminal
_CLEAR = "\r\x1b[K"


class Status:
    """A line that a terminal shows in one place, and a pipe gets now and then.

    Args:
        step: what is being done first.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self._start = time.monotonic()
        self._live = sys.stderr is not None and sys.stderr.isatty()
        self._shown = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def __call__(self, step: str) -> None:
        """From now on something else is being done."""
        self._step = step

    def clear(self) -> None:
        """Make room for a line of others."""
        with self._lock:
            if self._shown:
                streams.write(sys.stderr, _CLEAR, flush=True)
                self._shown = False

    def end(self) -> None:
        """Say nothing more."""
        self._done.set()
        self._thread.join()
        self.clear()

    def _tell(self) -> None:
        wait = QUIET
        while not self._done.wait(wait):
            seconds = time.monotonic() - self._start
            if self._live:
                line, wait = f"{_CLEAR}{one_line(self._step)} ... {seconds:.0f} s", _TICK
            else:
                line, wait = f"{one_line(self._step)} ... {seconds:.0f} s\n", AGAIN
            with self._lock:
                streams.write(sys.stderr, line, flush=True)
                self._shown = self._live
