"""Outputs are checked before the work, and written in one step.

Whatever happens in between (full disk, kill), the input and an earlier output are whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from bnpass.errors import InputError, OutputError
from bnpass.files.groups import replacing
from bnpass.files.leftovers import sweep
from bnpass.files.reading import PathLike, data_files, names_data


def check_output(
    path: PathLike, *, force: bool = False, source: PathLike | Iterable[PathLike] | None = None
) -> Path:
    """Check, before any work is done, that ``path`` can be written; return it as a Path.

    What a killed run left of it is cleared away.

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
    sweep(path)
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
        if names_data(one) and any(path.samefile(d) for d in _data_files_if_readable(one)):
            raise OutputError(f"the output is the input's data file: {path}",
                              "bnpass never writes onto its input; name another file")


def _data_files_if_readable(path: PathLike) -> list[Path]:
    try:
        return data_files(path)
    except (InputError, OSError):
        return []  # not a model: whoever reads it will say so


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


def atomic_write(path: PathLike, data: bytes | str, *, force: bool = True) -> Path:
    """Write bytes or text (UTF-8) to ``path`` in one step; return the path."""
    path = check_output(path, force=force)
    content = data.encode() if isinstance(data, str) else data
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path
