"""What goes over the pipe between bnpass and the child process that runs onnxruntime.

One frame is a JSON header and the raw bytes of arrays behind it: no pickle, nothing is executed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, Any]

_LENGTHS = struct.Struct("<QQ")
_PIECE = 1 << 24  # bytes read at once


def write_frame(stream: BinaryIO, header: dict[str, Any], parts: Sequence[Any] = ()) -> None:
    """Send a header and byte-like parts behind it."""
    sizes = [len(part) for part in parts]
    text = json.dumps({**header, "parts": sizes}).encode()
    stream.write(_LENGTHS.pack(len(text), sum(sizes)))
    stream.write(text)
    for part in parts:
        stream.write(part)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], list[bytearray]]:
    """Receive what :func:`write_frame` sent.

    Raises:
        EOFError: the other side has gone.
    """
    length, _ = _LENGTHS.unpack(_read(stream, _LENGTHS.size))
    header = json.loads(_read(stream, length))
    return header, [_read(stream, size) for size in header.pop("parts")]


def _read(stream: BinaryIO, size: int) -> bytearray:
    found = bytearray()
    while len(found) < size:
        piece = stream.read(min(size - len(found), _PIECE))
        if not piece:
            raise EOFError("the other side of the pipe has gone")
        found += piece
    return found


def pack(array: Array) -> tuple[dict[str, Any], Any]:
    """An array as (description, bytes); texts go as JSON."""
    array = np.asarray(array)
    about = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if array.dtype.kind in "OUS":
        texts = [t.decode() if isinstance(t, bytes) else str(t) for t in array.ravel().tolist()]
        return {**about, "dtype": "object"}, json.dumps(texts).encode()
    return about, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def unpack(about: dict[str, Any], data: bytearray) -> Array:
    """The inverse of :func:`pack`."""
    shape = tuple(about["shape"])
    if about["dtype"] == "object":
        return np.array(json.loads(data), object).reshape(shape)
    return np.frombuffer(data, _dtype(about["dtype"])).reshape(shape)


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
