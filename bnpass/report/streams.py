"""stdout and stderr that may be closed, full, or read by nobody any more.

A result that cannot be printed must not stop the work, and the exit code has to tell the truth:
failures are remembered by whoever writes, and never raised twice by Python at its end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO


def repair() -> None:
    """Give a process that was started with closed streams streams that take nothing.

    Python leaves ``sys.stdout`` None, and the next file that is opened would get the number 1: a
    library that prints would write into a model.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Opened for the other direction: reading or writing fails, as it does when closed.
            wrong = os.O_WRONLY if number == 0 else os.O_RDONLY
            _put_at(os.open(os.devnull, wrong), number)
    sys.stdout = _opened(sys.stdout, 1)
    sys.stderr = _opened(sys.stderr, 2)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows ASCII alone
            stream.reconfigure(errors="backslashreplace")


def _put_at(descriptor: int, number: int) -> None:
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)


def _opened(stream: TextIO | None, number: int) -> TextIO:
    return stream if stream is not None else open(
        number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def write(stream: TextIO | None, text: str, *, flush: bool = False) -> OSError | None:
    """Write text; return what went wrong. A stream that failed takes nothing any more."""
    if stream is None:
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        stream.write(text)
        if flush:
            stream.flush()
    except OSError as error:
        silence(stream)
        return error
    except ValueError:  # closed in Python
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    return None


def silence(stream: TextIO) -> None:
    """Send the rest, of what Python holds back too, nowhere: it would fail again at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        _put_at(os.open(os.devnull, os.O_WRONLY), stream.fileno())
