"""What a killed run left is cleared away by the next one that writes the same file.

Every temporary file is called ``.NAME.<12 hex digits>.tmp``, lies beside its target and is locked
while its writer lives. A journal is such a file, too; it names the data files that were made under
their final names, and, once all files of a group are on the disk, how they were to be renamed. Of
a group that came so far the renaming is finished; of any other all files go. A journal may come
from a stranger, like any file: it is believed only about names of that form, in its own folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnpass.files import locks
from bnpass.files.reading import contains, data_names
from bnpass.onnx_model.storage.watching import state

MAGIC = b"bnpass journal 1\n"

_JOURNAL_SIZE = 1 << 20
_DATA = re.compile(r"(.+)\.[0-9a-f]{16}\.data")


def new_name(target: Path) -> Path:
    """A name for a temporary file beside ``target``."""
    return target.with_name(f".{_short(target.name)}.{os.urandom(6).hex()}.tmp")


def new_data_name(output: Path) -> Path:
    """A name for a data file of the model ``output``, beside it."""
    return output.with_name(f"{output.name}.{os.urandom(8).hex()}.data")


def owner_of(data: Path) -> Path:
    """The model for which a data file of that form was made."""
    found = _DATA.fullmatch(data.name)
    return data.with_name(found[1]) if found else data


def own_data(model: Path) -> set[Path]:
    """The data files made for a model by its name, used or not."""
    with contextlib.suppress(OSError):
        return {model.with_name(name) for name in os.listdir(model.parent)  # noqa: PTH208
                if name.startswith(model.name) and owner_of(Path(name)).name == model.name}
    return set()


def superseded(model: Path, by: Path) -> set[Path]:
    """The data files made for a model that nothing names once ``by`` has taken its place.

    A copy of the model in its folder, under any name, keeps them.
    """
    found = own_data(model)
    if not found:
        return set()
    now = data_names(by)
    old = {path for path in found & {model.with_name(name) for name in data_names(model)}
           if path.name not in now}
    return {path for path in old if not _named_elsewhere(path, {model, by})}


def _named_elsewhere(data: Path, known: set[Path]) -> bool:
    """Whether another model in the folder names a data file; whatever cannot be read may."""
    wanted = os.fsencode(data.name)
    for path in data.parent.iterdir():
        try:
            if path in known or not path.is_file() or not _may_be_model(path):
                continue
            if contains(path, wanted):
                return True
        except OSError:
            return True
    return False


def _may_be_model(path: Path) -> bool:
    """Whether it looks like a model: by its name, or by its first field, the IR's version."""
    if path.suffix == ".onnx":
        return True
    with path.open("rb") as file:
        return file.read(1) == b"\x08"


def sweep(path: Path) -> None:
    """Finish or clear away what killed runs have left of the output ``path``."""
    target = Path(os.path.realpath(path))
    form = re.compile(re.escape(f".{_short(target.name)}.") + r"[0-9a-f]{12}\.tmp")
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(target.parent) if form.fullmatch(name)]  # noqa: PTH208
        if not names:
            return
        with locks.naming(target.parent):
            left = [file for name in names if locks.is_left(file := target.with_name(name))]
            for file in left:
                if file.exists():  # no other journal has given it its name
                    _recover(file)
            for file in left:
                file.unlink(missing_ok=True)


def _short(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:150])


def _recover(journal: Path) -> None:
    entries = list(_entries(journal))
    if not any(key == "commit" for key, _ in entries):
        gone = "fresh"
    else:
        gone = "stale"
        for key, value in entries:
            if key == "rename":
                _finish(journal.parent, value)
    names = {value for key, value in entries if key == gone and _is_plain(value)}
    for name in names:
        data = journal.with_name(name)
        owner = owner_of(data)
        if owner != data and name not in data_names(owner):
            data.unlink(missing_ok=True)


def _entries(journal: Path) -> Iterator[tuple[str, Any]]:
    """What a journal says, up to the line at which its writer was killed."""
    with journal.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return
        for line in file.read(_JOURNAL_SIZE).splitlines():
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):
                return
            yield str(key), value


def _finish(folder: Path, value: Any) -> None:
    """Give a file its name, where nothing else has happened at that place since."""
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_plain, value[:2])):
        return
    temporary, target = folder / value[0], folder / value[1]
    ours = temporary.name.startswith(f".{_short(target.name)}.") and temporary.suffix == ".tmp"
    if ours and temporary.is_file() and not temporary.is_symlink() and state(target) == value[2]:
        temporary.replace(target)


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and "\0" not in name
