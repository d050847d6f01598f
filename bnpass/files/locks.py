"""Locks that end with the process that holds them, however it ends.

A lock on a temporary file says that its writer lives; a lock on a folder keeps two writers from
giving files their names at the same time. Where a platform or file system has no such locks
(Windows, some network folders), nothing is locked, and only files of a day ago count as left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DAY = 86_400.0


def hold(descriptor: int) -> None:
    """Lock an open file until it is closed, or the process ends."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_left(path: Path) -> bool:
    """Whether the writer of a temporary file is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
    finally:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _DAY
    return False


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """One process at a time gives files of this folder their names; the others wait."""
    descriptor = None
    if fcntl is not None:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
