"""A model file edited into another one: verified before it is written, all or nothing.

1. A large file with its weights in it is read and written as if they lay beside it.
2. A model with data files gets new ones: the kernel copies what stays, and the weights that change
   are written in between, piece by piece.
3. Any other file is read whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnx

from bnpass.errors import InputError
from bnpass.files import (
    check_input,
    check_output,
    load_model,
    open_model,
    replacing,
    save_model,
    together,
    writing,
)
from bnpass.files.reading import PathLike
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.storage.detached import attach, detach
from bnpass.onnx_model.storage.patching import PatchedData

T = TypeVar("T")

Edit = Callable[[OnnxModel], T]
"""Changes a model in place; returns what was done."""

Check = Callable[[T, "Path | onnx.ModelProto"], object]
"""(what was done, the result) -> None, or raises."""


def edit_file(
    path: PathLike,
    output: PathLike,
    edit: Edit[T],
    *,
    check: Check[T] | None = None,
    force: bool = False,
    whole: bool = False,
) -> T:
    """Edit ``path`` into ``output``.

    Args:
        path: the model file.
        output: the file to write.
        edit: may be called twice, each time with the model as it is in the file.
        check: called before anything takes its final name.
        force: replace an existing output.
        whole: read all data into memory, as ``edit`` runs the model.

    Returns:
        What ``edit`` returned.

    Raises:
        OutputError, InputError, and what ``edit`` and ``check`` raise.
    """
    output = check_output(output, force=force, source=path)
    path = check_input(path)
    with writing(output):
        light = None if whole else _detached(path)
        if light is not None:
            try:
                return _edit_detached(light, path.resolve(), output, edit, check)
            except OverflowError:
                pass  # too large for one file
        proto, places = open_model(path)
        if places and not whole:
            return _edit_external(proto, path, output, edit, check)
    if places:
        external.embed(proto, path.parent)
    model = OnnxModel(proto, path.parent, again=lambda: load_model(path))
    done = edit(model)
    if check is not None:
        check(done, model.proto)
    save_model(model.proto, output, force=force, source=path, external=True if places else None)
    return done


def _detached(path: Path) -> onnx.ModelProto | None:
    """The model of a large file without its weights; None where it is not to be read so."""
    model = detach(path.resolve())
    if model is None:
        return None
    try:
        places = external.places(model, path.resolve().parent)
    except InputError:
        return None  # reading the file in the ordinary way will say what is wrong
    inside = bool(places) and all(place.path == path.resolve() for place in places)
    return model if inside else None


def _edit_detached(
    light: onnx.ModelProto, path: Path, output: Path, edit: Edit[T], check: Check[T] | None
) -> T:
    with together(), PatchedData(light, path.parent, output, lasting=False) as store:
        model = OnnxModel(light, path.parent, store, lambda: detach(path) or load_model(path))
        done = edit(model)
        with replacing(output) as temporary:
            attach(model.proto, temporary, model.place)
            if check is not None:
                check(done, temporary)
    return done


def _edit_external(
    proto: onnx.ModelProto, path: Path, output: Path, edit: Edit[T], check: Check[T] | None
) -> T:
    again = lambda: load_model(path, data=False)  # noqa: E731
    with together(), PatchedData(proto, path.parent, output) as store:
        model = OnnxModel(proto, path.parent, store, again)
        done = edit(model)
        store.complete()
        store.redirect(external.tensors(model.proto))
        with replacing(output) as temporary:
            temporary.write_bytes(model.proto.SerializeToString())
            if check is not None:
                check(done, temporary)
            store.flush()
        store.keep()
    return done

