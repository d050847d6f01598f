"""The library's log records (logger ``bnpass``) as lines of a command."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnpass.report.ui import Ui


class _Handler(logging.Handler):
    def __init__(self, ui: Ui) -> None:
        super().__init__()
        self.ui = ui

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            self.ui.warn(text)
        elif record.levelno >= logging.INFO:
            self.ui.log(text)
        else:
            self.ui.detail(text)


@contextlib.contextmanager
def shown(ui: Ui) -> Iterator[None]:
    """Show records as log lines, debug records with ``-v`` only, warnings always.

    Warnings that Python's libraries give (of Pillow about a file) become log lines, too.
    """
    logger = logging.getLogger("bnpass")
    handler, level = _Handler(ui), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    given = warnings.showwarning
    warnings.showwarning = lambda message, category, *_: ui.log(f"{category.__name__}: {message}")
    try:
        yield
    finally:
        warnings.showwarning = given
        logger.removeHandler(handler)
        logger.setLevel(level)
