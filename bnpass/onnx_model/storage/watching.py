"""Whether a file is still the one that it was: others may write it while it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bnpass.errors import InputError

State = list[int] | None
"""Number, size and time of change of what has a name; None where nothing has it."""


def state(path: Path) -> State:
    """What tells a file from any other at that place; None where there is none."""
    try:
        about = path.lstat()
    except OSError:
        return None
    return [about.st_ino, about.st_size, about.st_mtime_ns]


def check(path: Path, before: State) -> None:
    """Refuse a file that is not as it was.

    Raises:
        InputError: it was replaced or written to, or is gone.
    """
    if state(path) != before:
        raise changed(path)


def changed(path: object) -> InputError:
    """The error of a file that changed."""
    return InputError(f"it changed while it was read: {path}",
                      "wait until whoever writes it is done, and run it again")


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Refuse a file that has changed by the end of the block (see :func:`check`).

    A link is followed: it is the file that counts.
    """
    real = path.resolve()
    before = state(real)
    yield
    check(real, before)
