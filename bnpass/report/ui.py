"""Where a command's output goes: results to stdout, log and progress to stderr.

With ``--json`` the tables are held back and one JSON object is printed on stdout at the end. All
text is escaped here (see :mod:`bnpass.report.terminal`). A stream that takes nothing any more stops
no work: what was lost on stdout is kept in :attr:`Ui.lost`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bnpass.report import streams
from bnpass.report.terminal import lines, one_line

if TYPE_CHECKING:
    from bnpass.report.progress import ProgressBar
    from bnpass.report.status import Status
    from bnpass.report.tables import Table


def process_count() -> int:
    """Processes that torchrun started; 1 outside of it."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def is_first_process() -> bool:
    """Whether this process speaks and writes for all that torchrun started."""
    return process_count() == 1 or os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Whether torchrun has started the processes again after one was lost (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or 0) > 0


def _coloured(word: str, colour: str) -> str:
    """A word in bold and a colour where stderr is a terminal that shows one."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or sys.stderr is None or not sys.stderr.isatty():
        return word
    return f"\x1b[1;{colour}m{word}\x1b[0m"


def _unheard(_: str) -> None:
    pass


class Ui:
    """The output of one run of a command.

    Attributes:
        json: print :attr:`document` on stdout at the end, and no tables.
        quiet: nothing but warnings, errors, and the document where it is asked for.
        verbose: also details.
        document: what ``--json`` prints, filled by the command.
        lost: why a result could not be printed on stdout, or None.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self.document: dict[str, Any] = {}
        self.lost: OSError | None = None
        self._by_line = False
        self._status: Status | None = None

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Ui:
        """The output that the raw arguments ask for, known even if they cannot be parsed."""
        given = set(arguments)
        quiet = bool(given & {"-q", "--quiet"}) or not is_first_process()
        return cls(json="--json" in given, quiet=quiet, verbose=bool(given & {"-v", "--verbose"}))

    def log(self, text: str) -> None:
        """One line on stderr about what is being done."""
        if not self.quiet:
            self.raw(one_line(text) + "\n")

    def detail(self, text: str) -> None:
        """One line on stderr with ``-v`` only."""
        if self.verbose:
            self.log(text)

    def warn(self, text: str) -> None:
        """One line on stderr that the user should not miss, also with ``-q``."""
        if is_first_process():
            self.raw(f"warning: {one_line(text)}\n")
        self.document.setdefault("warnings", []).append(text)

    def error(self, message: str, hint: str) -> None:
        """The ``error:`` line and the ``hint:`` line; on a terminal the two words are coloured."""
        parts = [("error", "31", message), ("hint", "36", hint)]
        streams.write(sys.stderr, "".join(
            f"{_coloured(word, colour)}: {one_line(text)}\n" for word, colour, text in parts if text
        ), flush=True)  # fmt: skip

    def raw(self, text: str) -> None:
        """Lines on stderr; a stderr that nobody reads is no error."""
        self._make_room()
        streams.write(sys.stderr, lines(text), flush=True)

    def table(self, table: Table) -> None:
        """A table on stdout, but with ``-q``."""
        if not self.json and not self.quiet:
            from bnpass.report.tables import render

            text = io.StringIO()
            try:
                render(table, text, terminal=sys.stdout or text)
            except MemoryError:  # what was written stays written: it only cannot be shown
                self.lost = self.lost or OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            self._result(text.getvalue())

    def say(self, text: str) -> None:
        """A line of the result on stdout, but with ``-q``."""
        if not self.json and not self.quiet:
            self._result(one_line(text) + "\n")

    def print(self, text: str) -> None:
        """Text of several lines on stdout, as it is: a script, not a report."""
        self._result(text)

    def _result(self, text: str, *, flush: bool = False) -> None:
        """Text on stdout, safe by now; the first failure is remembered."""
        self._make_room()
        if self.lost is None and is_first_process():
            self.lost = streams.write(sys.stdout, text, flush=flush)

    @contextlib.contextmanager
    def status(self, step: str) -> Iterator[Callable[[str], None]]:
        """Say on stderr what is being done, once it takes longer than a second.

        Yields a function that takes what is being done from then on. Inside of another status it
        is that one which goes on.
        """
        if self.quiet or self._status is not None:
            says = self._status or _unheard
            says(step)
            yield says
            return
        from bnpass.report.status import Status

        self._status = Status(step)
        try:
            yield self._status
        finally:
            self._status.end()
            self._status = None

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None = None) -> Iterator[ProgressBar]:
        """A progress bar on a terminal, a line every few seconds elsewhere, nothing with ``-q``."""
        from bnpass.report.progress import open_progress

        with open_progress(title, total, quiet=self.quiet) as progress:
            yield progress

    def record(self, document: dict[str, Any]) -> None:
        """With ``--json``, one of several documents: a line of its own, now.

        Nothing else is printed at the end then.
        """
        self._by_line = True
        if self.json:
            from bnpass.report.document import to_json

            self._result(to_json(document, indent=None) + "\n", flush=True)

    def _make_room(self) -> None:
        if self._status is not None:
            self._status.clear()

    def flush(self) -> None:
        """Print what is held back, so that a failure is known."""
        self._result("", flush=True)

    def close(self) -> None:
        """Print the JSON document if one was asked for, and what is held back of the rest."""
        text = ""
        if self.json and not self._by_line:
            from bnpass.report.document import to_json

            text = to_json(self.document) + "\n"
        self._result(text, flush=True)
