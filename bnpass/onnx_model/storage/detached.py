"""Large model files without their weights in memory.

``detach`` reads a model whose large initializers point into the file itself, as if they were
external data there; ``attach`` writes such a model as one file again, the weights copied by the
kernel from wherever they lie. Nodes, names and all the rest are protobuf's own to read and write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bnpass.files.reading import (
    PROTOBUF_LIMIT,
    PathLike,
    check_input,
    parse_model,
    readable_data,
)
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.storage.patching import copy_range, send_to_disk, write_all
from bnpass.onnx_model.storage.wire import BYTES, Buffer, FileBytes, fields, head

if TYPE_CHECKING:
    import onnx

LARGE_FILE = 1 << 27
"""Bytes from which on a model file is worth it."""

_DETACHED_FROM = 1 << 19  # bytes of a tensor

# Numbers of fields in onnx.proto.
_GRAPH = 7  # of ModelProto
_INITIALIZER = 5  # of GraphProto
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14  # of TensorProto

Chunk = bytes | external.Place


def detach(path: Path) -> onnx.ModelProto | None:
    """The model of a large file, its large initializers external, in the file itself.

    Args:
        path: a file, no link.

    Returns:
        The model; None where the file is small, beyond protobuf's limit, or not to be read so.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not LARGE_FILE <= path.stat().st_size <= PROTOBUF_LIMIT:
        return None
    try:
        with path.open("rb") as file:
            content = FileBytes(file.fileno())
            light = b"".join(_light_model(content, path.stat().st_size, path.name))
        model = onnx.ModelProto.FromString(light)
    except (ValueError, DecodeError):
        return None
    return model if model.opset_import and (model.graph.node or model.graph.output) else None


def open_light_model(path: PathLike) -> onnx.ModelProto:
    """Read an ONNX model; its large initializers stay in their files, relative to its folder.

    Everything else, small initializers and the tensors of nodes, is in the model.

    Raises:
        InputError: as :func:`bnpass.files.load_model`.
    """
    model = None if Path(path).is_symlink() else detach(check_input(path))
    if model is None:
        model = parse_model(path)
    folder = Path(path).parent
    with readable_data():
        places = external.places(model, folder)
        if places:
            large = {
                tensor.name
                for tensor in model.graph.initializer
                if external.is_external(tensor)
                and external.place(tensor, folder).length >= _DETACHED_FROM
            }
            external.embed(model, folder, kept=large)
    return model


def _light_model(content: Buffer, size: int, location: str) -> Iterator[bytes]:
    for field in fields(content, 0, size):
        if field.number == _GRAPH and field.kind == BYTES:
            graph = b"".join(_light_graph(content, field.value, field.end, location))
            yield head(_GRAPH, len(graph)) + graph
        else:
            yield content[field.start : field.end]


def _light_graph(content: Buffer, start: int, end: int, location: str) -> Iterator[bytes]:
    kept = start
    for field in fields(content, start, end):
        if field.number == _INITIALIZER and field.end - field.value >= _DETACHED_FROM:
            tensor = _light_tensor(content, field.value, field.end, location)
            if tensor is not None:
                yield content[kept : field.start] + head(_INITIALIZER, len(tensor)) + tensor
                kept = field.end
    yield content[kept:end]


def _light_tensor(content: Buffer, start: int, end: int, location: str) -> bytes | None:
    """A tensor without its raw data, pointing there; None where it has no large one."""
    import onnx

    found = list(fields(content, start, end))
    raw = [f for f in found if f.number == _RAW_DATA]
    if len(raw) != 1 or any(f.number in (_EXTERNAL_DATA, _DATA_LOCATION) for f in found):
        return None
    kept = (content[f.start : f.end] for f in found if f.number != _RAW_DATA)
    tensor = onnx.TensorProto.FromString(b"".join(kept))
    external.point(tensor, location, raw[0].value, raw[0].end - raw[0].value)
    return bytes(tensor.SerializeToString())


def attach(
    model: onnx.ModelProto, target: Path, place: Callable[[onnx.TensorProto], external.Place]
) -> None:
    """Write a model as one file, all its external initializers in it.

    Args:
        model: what is written.
        target: an existing file, empty.
        place: where an external tensor's numbers lie.

    Raises:
        OverflowError: it would be larger than the 2 GiB that one file can hold.
    """
    light = model.SerializeToString()
    chunks: list[Chunk] = []
    for field in fields(light, 0, len(light)):
        if field.number == _GRAPH:
            graph = list(_full_graph(light, field.value, field.end, place))
            chunks += [head(_GRAPH, _length(graph)), *graph]
        else:
            chunks.append(light[field.start : field.end])
    if _length(chunks) > PROTOBUF_LIMIT:
        raise OverflowError(f"{_length(chunks)} bytes in one file")
    _write(target, chunks)


def _length(chunks: list[Chunk]) -> int:
    return sum(c.length if isinstance(c, external.Place) else len(c) for c in chunks)


def _full_graph(
    light: bytes, start: int, end: int, place: Callable[[onnx.TensorProto], external.Place]
) -> Iterator[Chunk]:
    kept = start
    for field in fields(light, start, end):
        if field.number == _INITIALIZER:
            tensor = _full_tensor(light[field.value : field.end], place)
            if tensor is not None:
                yield light[kept : field.start]
                yield head(_INITIALIZER, _length(tensor))
                yield from tensor
                kept = field.end
    yield light[kept:end]


def _full_tensor(
    light: bytes, place: Callable[[onnx.TensorProto], external.Place]
) -> list[Chunk] | None:
    """The bytes of an external tensor with its raw data; None for one that has its own."""
    import onnx

    found = list(fields(light, 0, len(light)))
    if not any(f.number == _DATA_LOCATION for f in found):
        return None
    tensor = onnx.TensorProto.FromString(light)
    if not external.is_external(tensor):
        return None
    raw = place(tensor)
    away = (_EXTERNAL_DATA, _DATA_LOCATION)
    front = b"".join(light[f.start : f.end] for f in found if f.number < _RAW_DATA)
    behind = b"".join(
        light[f.start : f.end] for f in found if f.number > _RAW_DATA and f.number not in away
    )
    return [front + head(_RAW_DATA, raw.length), raw, behind]


def _write(target: Path, chunks: list[Chunk]) -> None:
    end = 0
    with target.open("r+b", buffering=0) as file:
        for chunk in chunks:
            if isinstance(chunk, bytes):
                file.seek(end)
                end += write_all(file, chunk)
                continue
            with external.opened(chunk.path) as source:
                copy_range(source, file, chunk.offset, chunk.length, end)
            send_to_disk(file, end, chunk.length)
            end += chunk.length
