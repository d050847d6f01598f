"""Model files are read: is it an ONNX model, and does its external data stay inside its folder?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bnpass.errors import InputError, close_matches
from bnpass.onnx_model.storage import external as ext
from bnpass.onnx_model.storage.watching import unchanged

if TYPE_CHECKING:
    import onnx

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message, and so one .onnx file, can hold."""

PathLike = str | os.PathLike[str]


def load_model(model: PathLike | onnx.ModelProto, *, data: bool = True) -> onnx.ModelProto:
    """Read an ONNX model.

    Args:
        model: path of an ``.onnx`` file; a ModelProto is returned as it is, not copied.
        data: also read external data into the model; otherwise its locations are only checked.

    Raises:
        InputError: no such file, a folder, not an ONNX model, or external data that is missing,
            cut off, or outside of the model's folder.
    """
    if not isinstance(model, str | os.PathLike):
        return model
    proto, found = open_model(model)
    if data and found:
        with readable_data():
            ext.embed(proto, Path(model).parent)
    return proto


def open_model(path: PathLike) -> tuple[onnx.ModelProto, list[ext.Place]]:
    """Read an ONNX model without its external data; also where that lies, which is checked.

    Raises:
        InputError: as :func:`load_model`.
    """
    path = check_input(path)
    proto = _parse(path)
    ext.follow(path)
    with readable_data():
        found = ext.places(proto, path.parent)
        for data in {place.path for place in found}:
            if data.samefile(path):
                raise InputError(f"external data is the model itself: {path.name!r}",
                                 "give the data file that belongs to the model")
    return proto, found


@contextlib.contextmanager
def readable_data() -> Iterator[None]:
    """Failures of reading data files as errors of the input."""
    try:
        yield
    except OSError as error:
        raise InputError(f"external data cannot be read: {error}", "check the data file") from error


def parse_model(path: PathLike) -> onnx.ModelProto:
    """Read an ONNX file as it is: external data is neither read nor looked at.

    Raises:
        InputError: no such file, a folder, or not an ONNX model.
    """
    return _parse(check_input(path))


def check_input(path: PathLike) -> Path:
    """Return ``path`` if it is a file that can be read.

    Raises:
        InputError: it is missing (with close matches), a folder, or may not be read.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.onnx"))
        hint = f"give the file in it: {path / inside[0]}" if inside else "give an .onnx file"
        raise InputError(f"is a folder, not a model file: {path}", hint)
    if not path.exists():
        raise InputError(f"no such file: {path}", _near(path))
    if not path.is_file() or not os.access(path, os.R_OK):
        raise InputError(f"cannot be read: {path}", "check what it is and its permissions (ls -l)")
    return path


def _near(path: Path) -> str:
    try:
        around = [p.name for p in path.parent.iterdir()]
    except OSError:
        return f"there is no folder {path.parent}"
    return close_matches(path.name, around) or "check the path"


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    from bnpass.onnx_model.validity import check_functions

    if path.stat().st_size > PROTOBUF_LIMIT:
        raise InputError(f"larger than the 2 GiB that one ONNX file can hold: {path}",
                         "save it with external data (onnx.save_model(..., "
                         "save_as_external_data=True))")
    try:
        with unchanged(path):
            _check_frame(path)
            content = path.read_bytes()
        proto: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except OSError as error:
        raise InputError(f"cannot be read: {path} ({error.strerror})", "check the file") from error
    except DecodeError:
        bytearray(2 * len(content))  # protobuf says the same of a lack of memory: MemoryError
        raise _no_onnx(path, content) from None
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise _no_onnx(path, content)
    if not proto.opset_import:
        raise InputError(f"the model states no opset: {path}",
                         "export it again; every ONNX file since 2017 states its opset_import")
    check_functions(proto)
    return proto


_FRAMED_FROM = 1 << 26  # bytes


def _check_frame(path: Path) -> None:
    """Refuse a large file that is no protobuf message before all of it is read.

    The fields of a message are found by their lengths, whatever is in them.
    """
    from bnpass.onnx_model.storage.wire import FileBytes, fields

    size = path.stat().st_size
    if size < _FRAMED_FROM:
        return
    with path.open("rb") as file:
        try:
            for _field in fields(FileBytes(file.fileno()), 0, size):
                pass
        except ValueError:
            file.seek(0)
            raise _no_onnx(path, file.read(64)) from None


_LOOKS_LIKE = (
    (b"", "it is empty"),
    (b"version https://git-lfs", "a Git LFS pointer: run 'git lfs pull' to fetch the model"),
    (b"PK\x03\x04", "it looks like a PyTorch or zip file: export it to ONNX first (bnpass.export)"),
    (b"\x80\x02", "it looks like a pickle: export the module to ONNX first"),
    (b"\x89HDF", "it looks like a Keras/HDF5 file: convert it to ONNX first (tf2onnx)"),
    (b"\x1f\x8b", "it is compressed: gunzip it first"),
)


def _no_onnx(path: Path, content: bytes) -> InputError:
    hint = "give a file that torch.onnx.export or another ONNX exporter wrote"
    for magic, meaning in _LOOKS_LIKE:
        if (content.startswith(magic) and magic) or (not magic and not content):
            hint = meaning
    return InputError(f"not an ONNX model: {path}", hint)


def names_data(model: PathLike) -> bool:
    """Whether a model file may have external data; found without parsing it."""
    return contains(model, b"location")


def contains(path: PathLike, wanted: bytes) -> bool:
    """Whether a file holds these bytes; the system reads it piece by piece."""
    import mmap

    with Path(path).open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(wanted) >= 0


def data_names(model: Path) -> set[str]:
    """The locations of external data that a file names, unchecked; none where it is no model."""
    try:
        found = ext.externals(_parse(model)) if names_data(model) else []
    except (InputError, OSError, ValueError):
        return set()
    return {e.value for tensor in found for e in tensor.external_data if e.key == "location"}


def data_files(model: PathLike) -> list[Path]:
    """The external data files of a model file, each once."""
    path = check_input(model)
    ext.follow(path)
    return sorted({place.path for place in ext.places(_parse(path), path.parent)})
