"""Model files, read and written so that nothing is ever lost.

Reading checks that the file is an ONNX model and that its external data stays inside its folder.
Writing goes to a temporary file beside the target, to the disk, and then replaces the target in
one step: whatever happens in between (full disk, kill), the input and an earlier output are whole.
An existing output needs ``force``; the input is never written onto, whatever the options say.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bnpass import external as ext
from bnpass.errors import InputError, OutputError, close_matches

if TYPE_CHECKING:
    import onnx

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message, and so one .onnx file, can hold."""

_MARGIN = 64 * 2**20  # room for nodes and names beside the tensors' bytes

PathLike = str | os.PathLike[str]


# -- reading ---------------------------------------------------------------------------------------


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
        with _readable_data():
            ext.embed(proto, Path(model).parent)
    return proto


def open_model(path: PathLike) -> tuple[onnx.ModelProto, list[ext.Place]]:
    """Read an ONNX model without its external data; also where that lies, which is checked.

    Raises:
        InputError: as :func:`load_model`.
    """
    path = check_input(path)
    proto = _parse(path)
    with _readable_data():
        return proto, ext.places(proto, path.parent)


@contextlib.contextmanager
def _readable_data() -> Iterator[None]:
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

    if path.stat().st_size > PROTOBUF_LIMIT:
        raise InputError(f"larger than the 2 GiB that one ONNX file can hold: {path}",
                         "save it with external data (onnx.save_model(..., "
                         "save_as_external_data=True))")
    try:
        content = path.read_bytes()
        proto: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except OSError as error:
        raise InputError(f"cannot be read: {path} ({error.strerror})", "check the file") from error
    except DecodeError:
        raise _no_onnx(path, content) from None
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise _no_onnx(path, content)
    if not proto.opset_import:
        raise InputError(f"the model states no opset: {path}",
                         "export it again; every ONNX file since 2017 states its opset_import")
    return proto


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


def data_files(model: PathLike) -> list[Path]:
    """The external data files of a model file, each once."""
    path = check_input(model)
    return sorted({place.path for place in ext.places(_parse(path), path.parent)})


# -- writing ---------------------------------------------------------------------------------------


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
    if Path(model).stat().st_size == 0:
        return False
    with Path(model).open("rb") as file, \
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"location") >= 0


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
    with _scratch(path) as temporary:
        yield temporary
        _commit(temporary, Path(os.path.realpath(path)))


@contextlib.contextmanager
def _scratch(path: PathLike) -> Iterator[Path]:
    """Yield an empty temporary file beside ``path``, which is gone afterwards in any case."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _mode(target)))
        yield temporary
    except OSError as error:
        raise OutputError(f"cannot be written: {path} ({error.strerror or error})",
                          "free some space or choose another folder; nothing was changed"
                          ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _commit(temporary: Path, target: Path) -> None:
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


def save_model(
    model: onnx.ModelProto,
    path: PathLike,
    *,
    force: bool = False,
    source: PathLike | None = None,
    external: bool | None = None,
) -> Path:
    """Write an ONNX model in one step.

    The model is not changed. Tensors that are external already must lie in the target's folder.

    Args:
        model: what is written.
        path: where.
        force: replace an existing file.
        source: the input file, which is never written onto.
        external: put the initializers of 1 kB and more into ``NAME.<hash>.data`` beside the
            file; None does so only beyond the 2 GiB that one file can hold. The model that points
            to the data is renamed last, so a reader never sees one without the other.

    Raises:
        OutputError: as :func:`check_output`, or the operating system refuses.
        InputError: a tensor is external and its data is not in the target's folder.
    """
    path = check_output(path, force=force, source=source)
    size = _check_tensors(model, path.parent)
    if external is None:
        external = size > PROTOBUF_LIMIT - _MARGIN
    if not external:
        _write_proto(model, path)
        return path
    with _data_beside(model, path) as pointing:
        _write_proto(pointing, path)
    return path


def _write_proto(model: onnx.ModelProto, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(_serialize(model, path))


def _check_tensors(model: onnx.ModelProto, folder: Path) -> int:
    """Check where external tensors lie; return the bytes of all that the model itself holds.

    The bytes are those of types and shapes: protobuf's ByteSize would serialise the model.
    """
    size = 0
    for tensor in ext.tensors(model):
        if ext.is_external(tensor):
            ext.place(tensor, folder)
        else:
            size += ext.nbytes(tensor) or 0
    return size


def _serialize(model: onnx.ModelProto, path: Path) -> bytes:
    from google.protobuf.message import EncodeError

    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise OutputError(f"larger than the 2 GiB that one ONNX file can hold: {path}",
                          "save it with external data (external=True)") from error


@contextlib.contextmanager
def _data_beside(model: onnx.ModelProto, path: Path) -> Iterator[onnx.ModelProto]:
    """Write the large initializers to ``NAME.<hash>.data``; yield a model that points there.

    The data file goes again if the body fails, unless an earlier output has the same data.
    """
    digest = hashlib.sha256()
    with _scratch(path) as temporary:
        with temporary.open("wb") as file:
            written = ext.write(model.graph.initializer, file, digest)
        named = path.with_name(f"{path.name}.{digest.hexdigest()[:16]}.data")
        fresh = not named.exists()
        _commit(temporary, named)
    try:
        yield _pointing(model, named.name, written)
    except BaseException:
        if fresh:
            named.unlink(missing_ok=True)
        raise


def _pointing(
    model: onnx.ModelProto, location: str, written: dict[str, tuple[int, int]]
) -> onnx.ModelProto:
    """A copy of the model without the bytes of the tensors in ``written``."""
    import onnx

    copy = onnx.ModelProto()
    _copy_fields(model, copy, leave_out="graph")
    _copy_fields(model.graph, copy.graph, leave_out="initializer")
    for tensor in model.graph.initializer:
        light = copy.graph.initializer.add()
        if tensor.name in written:
            light.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type,
                                            dims=tensor.dims))
            if tensor.HasField("doc_string"):
                light.doc_string = tensor.doc_string
            ext.point(light, location, *written[tensor.name])
        else:
            light.CopyFrom(tensor)
    return copy


def _copy_fields(
    source: onnx.ModelProto | onnx.GraphProto, target: onnx.ModelProto | onnx.GraphProto,
    leave_out: str,
) -> None:
    for field, value in source.ListFields():
        if field.name == leave_out:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
