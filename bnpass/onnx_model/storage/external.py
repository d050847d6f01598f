"""External data of ONNX models: where a tensor's bytes lie, and whether they may lie there.

ONNX (docs/ExternalData.md) lets a tensor name a file, an offset and a length instead of holding its
bytes. The file is named relative to the model's folder and must stay inside of it: a model file is
data from strangers, and following ``/etc/passwd`` or ``../secret`` would hand it to them.
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bnpass.errors import InputError
from bnpass.onnx_model.storage.watching import State, changed, check, state

if TYPE_CHECKING:
    import numpy as np
    import onnx

INLINE_BELOW = 1024
"""Tensors of fewer bytes stay inside the model file when the others move to the data file."""

TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""The fields of a TensorProto that hold numbers of a type, where raw_data does not."""

ALIGN = 4096
"""Offsets in a data file that bnpass writes: a page, so that a runtime can map the tensors."""


@dataclass(frozen=True)
class Place:
    """Where the bytes of one tensor lie: a file, an offset and a length in bytes.

    The file's path has no links in it: :func:`opened` refuses one that comes in later.
    """

    tensor: str
    path: Path
    offset: int
    length: int


# AttributeProto's TENSOR, GRAPH, SPARSE_TENSOR, TENSORS, GRAPHS, SPARSE_TENSORS; UNDEFINED (IR 1).
_HOLDS_TENSORS = frozenset({0, 4, 5, 9, 10, 11, 12})


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, of nested graphs and functions too."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type in _HOLDS_TENSORS:
                yield from _of_attribute(attribute)


def _of_attribute(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    elif attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
    elif attribute.HasField("g"):
        yield from _of_graph(attribute.g)
    yield from attribute.tensors
    for sparse in attribute.sparse_tensors:
        yield from (sparse.values, sparse.indices)
    for graph in attribute.graphs:
        yield from _of_graph(graph)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's bytes lie in another file."""
    return tensor.data_location == 1  # TensorProto.EXTERNAL


def nbytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes of a tensor's raw data as its type and dims say; None for strings."""
    width = bits(tensor.data_type)
    return None if width is None else math.ceil(math.prod(tensor.dims[:]) * width / 8)


@lru_cache(maxsize=64)
def bits(data_type: int) -> int | None:
    """Bits an element takes in raw data (packed below a byte); None for strings and no type."""
    import numpy as np
    import onnx

    name = onnx.TensorProto.DataType.Name(data_type)
    if name in {"STRING", "UNDEFINED"}:
        return None
    for packed, width in (("INT4", 4), ("FLOAT4", 4), ("INT2", 2)):
        if packed in name and name.startswith(("INT", "UINT", "FLOAT4")):
            return width
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize) * 8


def externals(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors whose bytes lie in other files."""
    return [tensor for tensor in tensors(model) if tensor.data_location == 1]


def place(tensor: onnx.TensorProto, folder: Path) -> Place:
    """Check where an external tensor lies and return it.

    Args:
        tensor: a tensor whose data is external.
        folder: the folder of the model file.

    Raises:
        InputError: the location is absolute, climbs out with ``..`` or through a link, the file is
            missing or too short, or the length does not fit the tensor's type and dims.
    """
    fields = {entry.key: entry.value for entry in tensor.external_data}
    path = inside(fields.get("location", ""), folder, tensor.name)
    try:
        offset = int(fields.get("offset", "0"))
        given = int(fields["length"]) if "length" in fields else None
    except ValueError:
        raise _broken(tensor.name, "its offset or length is no number") from None
    size = path.stat().st_size
    length = size - offset if given is None else given
    if offset < 0 or length < 0 or offset + length > size:
        raise _broken(tensor.name, f"{path.name} has {size} bytes, it asks for "
                                   f"{length} from {offset}")
    wanted = nbytes(tensor)
    if given is None and wanted is not None and length > wanted:
        length = wanted  # no length: the rest of the file, which may hold other tensors
    if wanted is not None and wanted != length:
        raise _broken(tensor.name, f"{length} bytes do not fit its type and shape "
                                   f"{list(tensor.dims)}, {wanted} do")
    return Place(tensor.name, path, offset, length)


def _broken(name: str, why: str) -> InputError:
    return InputError(f"external data of {name!r} cannot be read: {why}",
                      "copy the model together with its data file again; one of them is cut off")


def inside(location: str, folder: Path, name: str) -> Path:
    """The data file that ``location`` names, if it is a file inside ``folder``: its real path.

    Raises:
        InputError: it is absolute, climbs out of the folder (``..`` or a link), or is no file.
    """
    pure = location.replace("\\", "/")
    drive = len(pure) > 1 and pure[1] == ":"
    if not pure or "\0" in pure or pure.startswith("/") or drive or ".." in pure.split("/"):
        raise InputError(f"external data of {name!r} points outside of the model's folder: "
                         f"{location!r}", "put the data file beside the model and save it with a "
                         "relative location (onnx.save_model(..., location='model.data'))")
    path = _found(pure, folder, name, location)
    try:
        about = path.lstat()
    except OSError:
        raise InputError(f"external data file not found: {folder / pure}", "copy the data file "
                         "into the model's folder; it belongs to the model") from None
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"external data of {name!r} is no file: {location!r}",
                         "copy the data file into the model's folder; it belongs to the model")
    if about.st_nlink > 1:
        raise InputError(f"external data of {name!r} has a second name (a hard link): {location!r}",
                         "it may be another's file: copy it, as onnx 1.22 and newer ask for, too")
    return path


_linked: dict[Path, Path] = {}
"""Folder -> the real folder of the model that was read there by a link."""


def follow(model: Path) -> None:
    """Note whether a model is read by a link, as in a cache: its data may be where it really is."""
    folder = Path(os.path.realpath(model.parent))
    if model.is_symlink():
        _linked[folder] = Path(os.path.realpath(model)).parent
    else:
        _linked.pop(folder, None)


def _found(pure: str, folder: Path, name: str, location: str) -> Path:
    """Where a data file really lies: in the folder, or in that of the model behind a link.

    Raises:
        InputError: in neither.
    """
    here = Path(os.path.realpath(folder))
    there = _linked.get(here, here)
    path = here / pure if os.path.lexists(here / pure) else there / pure
    real = Path(os.path.realpath(path))
    if not (real.is_relative_to(here) or real.is_relative_to(there)):
        raise InputError(f"external data of {name!r} leaves the model's folder through a link: "
                         f"{location!r}", "replace the link by the file it points to")
    return real


def opened(path: Path) -> FileIO:
    """A data file that was checked, opened; what took its place or its folders' is refused.

    Every folder on the way is opened from the one above it, and none through a link, as onnx does
    since 1.22: between the check and this call somebody may have put a link in its place.

    Args:
        path: a real path, as in a :class:`Place`.

    Raises:
        OSError: it is no file of its own any more, or a link is on the way.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = FileIO(str(path), "rb", opener=lambda *_: _without_links(path, flags))
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        file.close()
        raise OSError(f"{path} was replaced while it was read")
    return file


def _without_links(path: Path, flags: int) -> int:
    """A descriptor of a file that is reached through no link.

    Where folders cannot be opened (Windows) the path is compared afterwards.
    """
    if os.open not in os.supports_dir_fd:
        descriptor = os.open(path, flags)
        if os.path.realpath(path) == str(path.absolute()):
            return descriptor
        os.close(descriptor)
        raise OSError(f"{path} was replaced while it was read")
    first, *folders, name = path.absolute().parts
    way = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
    place = os.open(first, way)
    try:
        for folder in folders:
            below = os.open(folder, way, dir_fd=place)
            os.close(place)
            place = below
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=place)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(place)


def location(tensor: onnx.TensorProto) -> str:
    """The data file that an external tensor names."""
    return next((e.value for e in tensor.external_data if e.key == "location"), "")


def places(model: onnx.ModelProto, folder: Path) -> list[Place]:
    """Where every external tensor of a model lies, each checked (see :func:`place`)."""
    return [place(tensor, folder) for tensor in externals(model)]


def overlapping(found: Iterable[Place]) -> set[tuple[Path, int]]:
    """(file, offset) of the places that have bytes in common: no one may write there alone."""
    ranges = sorted({(p.path, p.offset, p.offset + p.length) for p in found})
    twice = Counter((p.path, p.offset) for p in found)
    shared = {place for place, count in twice.items() if count > 1}
    end, last = 0, None
    for path, start, stop in ranges:
        if last is not None and last[0] == path and start < end:
            shared |= {last, (path, start)}
        if last is None or last[0] != path or stop > end:
            end, last = stop, (path, start)
    return shared


def embed(model: onnx.ModelProto, folder: Path, kept: Collection[str] = ()) -> None:
    """Read the external data into the model, changed in place; that of tensors ``kept`` stays."""
    files: dict[Path, BinaryIO | FileIO] = {}
    before: dict[Path, State] = {}
    try:
        for tensor in externals(model):
            if tensor.name in kept:
                continue
            where = place(tensor, folder)
            if where.path not in files:
                before[where.path] = state(where.path)
                files[where.path] = opened(where.path)
            _read(tensor, where, files[where.path])
        for path, was in before.items():
            check(path, was)
    finally:
        for file in files.values():
            file.close()


def read(where: Place) -> np.ndarray:
    """The bytes at a place, in an array of their own.

    Raises:
        OSError: the file is another one now (:func:`opened`).
        InputError: it became shorter.
    """
    import numpy as np

    with opened(where.path) as file:
        file.seek(where.offset)
        return read_into(file, np.empty(where.length, np.uint8))


def read_into(file: FileIO, buffer: np.ndarray) -> np.ndarray:
    """Fill all of a buffer: the system may hand out less at a time than was asked for."""
    view, end = buffer.data, 0
    while end < len(view):
        got = file.readinto(view[end:])
        if not got:
            raise changed(file.name)
        end += got
    return buffer


def _read(tensor: onnx.TensorProto, where: Place, file: BinaryIO | FileIO) -> None:
    file.seek(where.offset)
    content = file.read(where.length)
    if len(content) < where.length:
        raise changed(where.path)
    tensor.raw_data = content
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor external: ``length`` bytes at ``offset`` of the file ``location``."""
    for data in ("raw_data", *TYPED):
        tensor.ClearField(data)
    del tensor.external_data[:]
    tensor.data_location = 1  # type: ignore[assignment]  # TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def raw_bytes(tensor: onnx.TensorProto) -> bytes:
    """The tensor's bytes as raw data holds them (little endian), however it stores them."""
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    import onnx

    copy = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor))
    return copy.raw_data


def movable(tensor: onnx.TensorProto) -> bool:
    """Whether :func:`write` moves the tensor into the data file."""
    size = nbytes(tensor)
    return size is not None and size >= INLINE_BELOW and not is_external(tensor)


def write(
    found: Iterable[onnx.TensorProto], file: BinaryIO, digest: Any
) -> dict[str, tuple[int, int]]:
    """Write movable tensors one behind another, aligned; return name -> (offset, length).

    Args:
        found: tensors with unique names.
        file: the data file, open for writing at 0.
        digest: a hashlib object that is fed with everything written.
    """
    written: dict[str, tuple[int, int]] = {}
    end = 0
    for tensor in found:
        if movable(tensor):
            start = -(-end // ALIGN) * ALIGN
            data = raw_bytes(tensor)
            for piece in (bytes(start - end), data):
                file.write(piece)
                digest.update(piece)
            written[tensor.name] = (start, len(data))
            end = start + len(data)
    return written
