"""Damaged data files: whatever a library raises while it reads one becomes an error of the input.

zlib, zipfile, tokenize, Pillow and numpy raise some twenty kinds of exceptions for files that are
cut off, encrypted, patched or lie about their sizes; each of them says that the file is at fault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bnpass.errors import BnpassError, InputError


@contextlib.contextmanager
def reading(path: Path | str, kind: str, hint: str) -> Iterator[None]:
    """Turn any exception inside into an :class:`InputError` that names the file.

    Args:
        path: the file that is read inside; nothing else may be done there.
        kind: what it should be, for the message: ``".npz"``.
        hint: what the user can do.
    """
    try:
        yield
    except (BnpassError, ImportError):
        raise
    except MemoryError as error:
        raise InputError(f"{path}: cannot be read as {kind}: it declares more than fits into "
                         "memory", hint) from error
    except Exception as error:
        raise InputError(f"{path}: cannot be read as {kind}: {reason(error)}", hint) from error


def reason(error: Exception) -> str:
    """One line on an exception: its first line, or its kind where it says nothing."""
    lines = str(error).split("\n", 1)[0].strip()
    return lines[:200] or type(error).__name__
