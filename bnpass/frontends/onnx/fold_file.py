"""Fold a model file into another file: verified before it is written, all or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from bnpass.errors import InputError
from bnpass.files import (
    check_input,
    check_output,
    data_files,
    load_model,
    open_model,
    replacing,
    save_model,
    writing,
)
from bnpass.frontends.onnx.folding import Folded, FoldOptions, fold_model
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.storage.detached import attach, detach
from bnpass.onnx_model.storage.patching import PatchedData

Check = Callable[[Any, Any, frozenset[str]], object]
"""(original, folded, values that changed) -> None, or raises; models are paths or ModelProtos."""


def fold_file(
    path: Path,
    output: Path,
    options: FoldOptions,
    *,
    check: Check | None = None,
    force: bool = False,
) -> Folded:
    """Fold ``path`` into ``output``.

    A model with external data is never read whole: the kernel copies what stays of its data file,
    and the weights that change are written in between, piece by piece.

    Args:
        path: the model file.
        output: the file to write.
        options: see :class:`FoldOptions`.
        check: called before anything takes its final name.
        force: replace an existing output.

    Raises:
        OutputError, InputError, RefusedError, and what ``check`` raises.
    """
    check_output(output, force=force, source=path)
    with writing(output):
        large = _fold_detached(path, output, options, check)
    if large is not None:
        return large
    model, places = open_model(path)
    if places:
        with writing(output):
            return _fold_external(path, model, output, options, check)
    done = fold_model(model, options, fresh=lambda: load_model(path))
    if check is not None and done.plan.entries:
        check(path, done.model, done.changed)
    save_model(done.model, output, force=force, source=path)
    return done


def _fold_detached(
    path: Path, output: Path, options: FoldOptions, check: Check | None
) -> Folded | None:
    """A large file whose weights are in it: they are read and written as if they were not.

    None where the file cannot be read so, or what comes out is too large for one file.
    """
    path = check_input(path).resolve()
    model = detach(path)
    if model is None or not _all_inside(model, path):
        return None
    with PatchedData(model, path.parent, output, lasting=False) as store:
        done = fold_model(
            model,
            options,
            folder=path.parent,
            store=store,
            fresh=lambda: detach(path) or load_model(path),
        )
        try:
            with replacing(output) as temporary:
                attach(done.model, temporary, lambda tensor: store.place(tensor, path.parent))
                if check is not None and done.plan.entries:
                    check(path, temporary, done.changed)
        except OverflowError:
            return None
    return done


def _all_inside(model: onnx.ModelProto, path: Path) -> bool:
    """Whether there is external data, and all of it in the model's own file."""
    try:
        places = external.places(model, path.parent)
    except InputError:
        return False  # reading the file in the ordinary way will say what is wrong
    return bool(places) and all(place.path == path for place in places)


def _fold_external(
    path: Path,
    model: onnx.ModelProto,
    output: Path,
    options: FoldOptions,
    check: Check | None,
) -> Folded:
    with PatchedData(model, path.parent, output) as store:
        done = fold_model(
            model,
            options,
            folder=path.parent,
            store=store,
            fresh=lambda: load_model(path, data=False),
        )
        store.complete()
        store.redirect(external.tensors(done.model))
        stale = _own_data(output) if output.exists() else []
        with replacing(output) as temporary:
            temporary.write_bytes(done.model.SerializeToString())
            if check is not None and done.plan.entries:
                check(path, temporary, done.changed)
            store.flush()
        store.keep()
    for old in stale:
        old.unlink(missing_ok=True)
    return done


def _own_data(output: Path) -> list[Path]:
    """Data files that an earlier run of bnpass wrote for the output that is replaced."""
    ours = re.compile(re.escape(output.name) + r"\.[0-9a-f]{16}\.data")
    try:
        return [p for p in data_files(output) if ours.fullmatch(p.name)]
    except Exception:  # noqa: BLE001 - whatever was there, it is replaced
        return []
