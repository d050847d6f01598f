"""The output folder of a run: checked before the work, filled file by file, each in one step."""

from __future__ import annotations

import os
from pathlib import Path

from bnpass.errors import OutputError
from bnpass.files import check_output

NAMES = ("inserted.onnx", "trained.onnx", "deploy.onnx", "report.json", "report.html", "curves.png",
         "metrics.csv")
"""What a run writes; ``plain.onnx`` and ``metrics_plain.csv`` too when the arms are compared."""

PLAIN = ("plain.onnx", "metrics_plain.csv")


def check_folder(
    folder: Path, source: str | os.PathLike[str] | None, *, force: bool, names: tuple[str, ...]
) -> Path:
    """Check that a run's files can be written into ``folder``, which need not be there yet.

    Raises:
        OutputError: one of them is there already (without ``force``) or is the input, the folder
            is a file, or cannot be written or made.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output is a file, not a folder: {folder}", "name another folder")
    if folder.is_dir():
        for name in names:
            if not force and (folder / name).is_file():
                raise OutputError(f"the output exists: {folder / name}",
                                  "pass --resume to go on with an interrupted run of the same "
                                  "settings, --force to replace it, or name another folder")
            check_output(folder / name, force=force, source=source)
        return folder
    parent = next(p for p in folder.absolute().parents if p.exists())
    effective = os.access in os.supports_effective_ids
    writable = os.access(parent, os.W_OK | os.X_OK, effective_ids=effective)
    if not parent.is_dir() or not writable:
        raise OutputError(f"the folder cannot be made: {folder}",
                          f"choose another one, or change the permissions of {parent}")
    return folder
