"""Files are written in one step.

Each goes to a temporary file beside the target, to the disk, and then replaces the target: whatever
happens in between (full disk, kill), the input and an earlier output are whole.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from bnpass.errors import InputError, OutputError
from bnpass.files.reading import PathLike, data_files


def check_output(
    path: PathLike, *, force: bool = False, source: PathLike | Iterable[PathLike] | None = None
) -> Path:
    """Check, before any work is done, that ``path`` can be written; return it as a Path.

    Args:
        path: the file to write later.
        force: allow that it exists.
        source: the input or inputs, which are never written onto, nor are their data files.

    Raises:
        OutputError: it exists (without ``force``), is an input or an input's data file, is no
            regular file, or its folder is missing or read-only.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"the output is a folder: {path}", f"name a file: {path / 'out.onnx'}")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"the output's folder does not exist: {folder}", f"mkdir -p {folder}")
    if path.exists():
        _check_source(path, source)
        if not path.is_file():
            raise OutputError(f"the output is no regular file: {path}", "name another file")
        if not force:
            raise OutputError(f"the output exists: {path}", "pass --force (force=True in Python) "
                              "to replace it, or name another file")
    if not _writable(Path(os.path.realpath(path)).parent):
        raise OutputError(f"the folder cannot be written: {folder}",
                          "choose another folder or change its permissions")
    return path


def _writable(folder: Path) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


def _check_source(path: Path, source: PathLike | Iterable[PathLike] | None) -> None:
    if source is None:
        return
    single = isinstance(source, str | os.PathLike)
    for one in [cast(PathLike, source)] if single else cast(Iterable[PathLike], source):
        if not Path(one).exists():
            continue
        if path.samefile(one):
            raise OutputError(f"the output is the input: {path}",
                              "bnpass never writes onto its input; name another file")
        if _names_data(one) and any(path.samefile(d) for d in _data_files_if_readable(one)):
            raise OutputError(f"the output is the input's data file: {path}",
                              "bnpass never writes onto its input; name another file")


def _names_data(model: PathLike) -> bool:
    """Whether a model file may have external data; found without parsing it."""
    wanted, end = b"location", b""
    with Path(model).open("rb") as file:
        while piece := file.read(1 << 22):
            if wanted in end + piece:
                return True
            end = piece[-len(wanted) :]
    return False


def _data_files_if_readable(path: PathLike) -> list[Path]:
    try:
        return data_files(path)
    except (InputError, OSError):
        return []  # not a model: whoever reads it will say so


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; leave normally and it replaces ``path`` in one step.

    The file is flushed to the disk first. On any exception the temporary file is removed and an
    earlier ``path`` stays as it was. A link is followed: the file that it points to is replaced.

    Raises:
        OutputError: the operating system refuses (disk full, read-only folder).
    """
    with scratch(path) as temporary:
        yield temporary
        commit(temporary, Path(os.path.realpath(path)))


@contextlib.contextmanager
def scratch(path: PathLike) -> Iterator[Path]:
    """Yield an empty temporary file beside ``path``, which is gone afterwards in any case."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:100]}.{os.urandom(6).hex()}.tmp")
    try:
        with writing(path):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _mode(target)))
            yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[None]:
    """Turn what the operating system refuses inside (disk full, read-only) into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written: {path} ({error.strerror or error})",
                          "free some space or choose another folder; earlier files are whole"
                          ) from error


def make_folder(folder: PathLike) -> None:
    """Make the folder, or leave it as it is.

    Raises:
        OutputError: the operating system refuses.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder cannot be made: {folder} ({error.strerror})",
                          "choose another one") from error


def commit(temporary: Path, target: Path) -> None:
    """Flush ``temporary`` to the disk and rename it to ``target``."""
    _flush(temporary)
    temporary.replace(target)
    _flush(target.parent)


def _mode(target: Path) -> int:
    return stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def atomic_write(path: PathLike, data: bytes | str, *, force: bool = True) -> Path:
    """Write bytes or text (UTF-8) to ``path`` in one step; return the path."""
    path = check_output(path, force=force)
    content = data.encode() if isinstance(data, str) else data
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path
