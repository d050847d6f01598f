"""SIGTERM and SIGHUP end a command as Ctrl-C does: through its ``finally`` clauses.

Temporary files go, a child process is ended, an output is whole or not there. The exit code is the
shell's, 128 plus the signal's number.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

_DEAF = 2.0
"""Seconds for which further signals do not disturb the clearing up that the first one began."""

_last = float("-inf")


class Terminated(KeyboardInterrupt):
    """The process was asked to end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + (error.number if isinstance(error, Terminated) else int(signal.SIGINT))


def install() -> None:
    """Raise :class:`Terminated` at signals that would end the process at once.

    What the parent process wants ignored (nohup, a job in the background) stays ignored.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _raise)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _raise)


def ignore() -> None:
    """Ignore them: the work is done, and what remains takes a moment."""
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _raise:
            signal.signal(number, signal.SIG_IGN)


def _raise(number: int, _: FrameType | None) -> None:
    global _last  # noqa: PLW0603
    now = time.monotonic()
    if now - _last < _DEAF:
        return
    _last = now
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)
