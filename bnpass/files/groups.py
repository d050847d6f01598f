"""Files that take their names together: all of them, or none.

Each is written to a temporary file beside its target. When all are whole and on the disk, they are
renamed, under a lock of their folder; if one of these steps is refused, the others are undone.
What a kill leaves between two of them is finished or cleared away by :mod:`bnpass.files.leftovers`.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from bnpass.errors import OutputError
from bnpass.files import locks
from bnpass.files.leftovers import MAGIC, new_name, owner_of, superseded
from bnpass.files.reading import PathLike
from bnpass.onnx_model.storage.watching import state


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[None]:
    """Turn what the operating system refuses inside (disk full, read-only) into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written: {path} ({error.strerror or error})",
                          "free some space or choose another folder; earlier files are whole"
                          ) from error


@dataclass
class _Entry:
    """A file to be: its temporary file, which is open and locked, and its place."""

    target: Path
    temporary: Path
    descriptor: int
    force: bool = True
    backup: Path | None = None

    @classmethod
    def create(cls, target: Path, *, force: bool = True) -> _Entry:
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666
        while True:
            temporary = new_name(target)
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
            locks.hold(descriptor)
            with contextlib.suppress(OSError):  # unless it was swept before it was locked
                if os.fstat(descriptor).st_ino == temporary.stat().st_ino:
                    return cls(target, temporary, descriptor, force)
            os.close(descriptor)

    def drop(self) -> None:
        for path in (self.temporary, self.backup):
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


class FileGroup:
    """Files that are written now and take their names together in :meth:`commit`."""

    def __init__(self) -> None:
        self._entries: dict[Path, _Entry] = {}
        self._fresh: list[Path] = []
        self._needed: list[Path] = []
        self._journal: _Entry | None = None

    def temporary(self, path: PathLike, *, force: bool = True) -> Path:
        """A new, empty file that becomes ``path``; a link is followed.

        Args:
            path: the target.
            force: whether it may replace what is there by then.
        """
        target = Path(os.path.realpath(path))
        self.drop(target)
        with writing(path):
            entry = self._entries[target] = _Entry.create(target, force=force)
        return entry.temporary

    def path_of(self, path: PathLike) -> Path:
        """Where the content of ``path`` lies now: in its temporary file, if it has one."""
        entry = self._entries.get(Path(os.path.realpath(path)))
        return entry.temporary if entry else Path(path)

    def drop(self, path: PathLike) -> None:
        """Give a file up."""
        entry = self._entries.pop(Path(os.path.realpath(path)), None)
        if entry is not None:
            entry.drop()

    def settle(self, path: PathLike, data: Path) -> None:
        """Give a data file its name before the commit: it is known by what is in the file.

        One that is there already has the same content, and stays.

        Args:
            path: for which :meth:`temporary` was called.
            data: the name.
        """
        entry = self._entries[Path(os.path.realpath(path))]
        if not data.exists():
            self.fresh(data)
            with writing(data):
                _flush(entry.temporary)
                entry.temporary.replace(data)
        self._needed.append(data)
        self.drop(path)

    def fresh(self, data: Path) -> None:
        """Note a data file that will be made under its final name; without commit it goes."""
        self._note("fresh", data.name, owner_of(data))
        self._fresh.append(data)

    def commit(self) -> None:
        """Put all files on the disk and give them their names.

        Raises:
            OutputError: the operating system refuses, or a file is there that may not be replaced;
                then every earlier file is as it was.
        """
        entries = list(self._entries.values())[::-1]  # what points to others comes last
        for entry in entries:
            with writing(entry.target):
                _flush(entry.temporary)
        folders = sorted({entry.target.parent for entry in entries})
        with contextlib.ExitStack() as stack:
            for folder in folders:
                stack.enter_context(locks.naming(folder))
            stale = self._prepare(entries)
            self._rename(entries)
            for path in stale:
                path.unlink(missing_ok=True)
        self._fresh.clear()
        for folder in folders:
            _flush(folder)
        self.discard()

    def _prepare(self, entries: list[_Entry]) -> set[Path]:
        """Check the places, write the journal; returns the data files that fall out of use."""
        stale: set[Path] = set()
        for data in self._needed:
            if not data.exists():
                raise OutputError(f"another writer has removed {data}", "write it again")
        for entry in entries:
            if not entry.force and entry.target.exists():
                raise OutputError(f"the output exists: {entry.target}",
                                  "something else has written it meanwhile; name another file")
            stale |= superseded(entry.target, entry.temporary)
        if len(entries) > 1:
            last = entries[-1].target
            for entry in entries:
                if entry.target.parent == last.parent:
                    named = [entry.temporary.name, entry.target.name, state(entry.target)]
                    self._note("rename", named, last)
            for path in stale:
                self._note("stale", path.name, last)
            self._note("commit", True, last, flush=True)
        return stale

    def _rename(self, entries: list[_Entry]) -> None:
        done: list[_Entry] = []
        try:
            for entry in entries:
                with writing(entry.target):
                    if len(entries) > 1:
                        _back_up(entry)
                    done.append(entry)
                    entry.temporary.replace(entry.target)
        except BaseException:
            for entry in done[::-1]:
                _undo(entry)
            raise

    def discard(self) -> None:
        """Remove everything that has not got its name."""
        for entry in self._entries.values():
            entry.drop()
        self._entries.clear()
        for path in self._fresh:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._fresh.clear()
        if self._journal is not None:
            self._journal.drop()
            self._journal = None

    def _note(self, key: str, value: object, target: Path, *, flush: bool = False) -> None:
        """A line in the journal, which is made for the first one."""
        with writing(target):
            line = json.dumps([key, value]).encode() + b"\n"
            if self._journal is None:
                self._journal = _Entry.create(Path(os.path.realpath(target)))
                line = MAGIC + line
            os.write(self._journal.descriptor, line)
            if flush:
                os.fsync(self._journal.descriptor)


def _back_up(entry: _Entry) -> None:
    """Keep what is replaced under a second name, where the file system has such names."""
    if entry.target.exists():
        backup = new_name(entry.target)
        with contextlib.suppress(OSError):
            os.link(entry.target, backup)
            entry.backup = backup


def _undo(entry: _Entry) -> None:
    if entry.temporary.exists():
        return  # it was not renamed
    with contextlib.suppress(OSError):
        if entry.backup is not None:
            entry.backup.replace(entry.target)
        else:
            entry.target.unlink()


_current: ContextVar[FileGroup | None] = ContextVar("bnpass_file_group", default=None)


@contextlib.contextmanager
def together() -> Iterator[FileGroup]:
    """Let all files that are written inside take their names together at the end.

    Inside another such block it is that block. On any exception nothing of it stays.

    Raises:
        OutputError: as :meth:`FileGroup.commit`.
    """
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    group = FileGroup()
    token = _current.set(group)
    try:
        yield group
        group.commit()
    finally:
        _current.reset(token)
        group.discard()


def note_fresh(data: Path) -> None:
    """Let the group that is being written own a data file that will be made."""
    group = _current.get()
    if group is not None:
        group.fresh(data)


@contextlib.contextmanager
def replacing(path: PathLike, *, force: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; leave normally and it replaces ``path`` in one step.

    The file is flushed to the disk first. On any exception the temporary file is removed and an
    earlier ``path`` stays as it was. A link is followed: the file that it points to is replaced.

    Args:
        path: the file to write.
        force: whether it may replace what is there by then.

    Raises:
        OutputError: the operating system refuses (disk full, read-only folder).
    """
    with together() as group, writing(path):
        try:
            yield group.temporary(path, force=force)
        except BaseException:
            group.drop(path)
            raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
