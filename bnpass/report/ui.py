"""Where a command's output goes: results to stdout, log and progress to stderr.

With ``--json`` the tables are held back and one JSON object is printed on stdout at the end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnpass.report.progress import ProgressBar
    from bnpass.report.tables import Table


def process_count() -> int:
    """Processes that torchrun started; 1 outside of it."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def is_first_process() -> bool:
    """Whether this process speaks and writes for all that torchrun started."""
    return process_count() == 1 or os.environ.get("RANK", "0") == "0"


class Ui:
    """The output of one run of a command.

    Attributes:
        json: print :attr:`document` on stdout at the end, and no tables.
        quiet: no log and no progress.
        verbose: also details.
        document: what ``--json`` prints, filled by the command.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self.document: dict[str, Any] = {}

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Ui:
        """The output that the raw arguments ask for, known even if they cannot be parsed."""
        given = set(arguments)
        quiet = bool(given & {"-q", "--quiet"}) or not is_first_process()
        return cls(json="--json" in given, quiet=quiet, verbose=bool(given & {"-v", "--verbose"}))

    def log(self, text: str) -> None:
        """One line on stderr about what is being done."""
        if not self.quiet:
            self.raw(f"{text}\n")

    def detail(self, text: str) -> None:
        """One line on stderr with ``-v`` only."""
        if self.verbose:
            self.log(text)

    def warn(self, text: str) -> None:
        """One line on stderr that the user should not miss, also with ``-q``."""
        self.raw(f"warning: {text}\n")
        self.document.setdefault("warnings", []).append(text)

    def error(self, message: str, hint: str) -> None:
        """The ``error:`` line and the ``hint:`` line."""
        self.raw(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))

    def raw(self, text: str) -> None:
        """Text on stderr as it is; a stderr that nobody reads is no error."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()

    def table(self, table: Table) -> None:
        """A table on stdout."""
        if not self.json:
            from bnpass.report.tables import render

            render(table, sys.stdout)

    def say(self, text: str) -> None:
        """A line of the result on stdout."""
        if not self.json:
            sys.stdout.write(f"{text}\n")

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None = None) -> Iterator[ProgressBar]:
        """A progress bar on a terminal, a line every few seconds elsewhere, nothing with ``-q``."""
        from bnpass.report.progress import open_progress

        with open_progress(title, total, quiet=self.quiet) as progress:
            yield progress

    def close(self) -> None:
        """Print the JSON document if one was asked for."""
        if self.json:
            from bnpass.report.document import to_json

            sys.stdout.write(to_json(self.document) + "\n")
