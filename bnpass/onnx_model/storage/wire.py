"""protobuf's wire format, as far as it takes to find and to leave out one field of a message.

Source: protobuf.dev, "Encoding": a field is a tag (number and wire type as a varint) and a value,
whose length follows from the type or stands in front of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple, Protocol

BYTES = 2
"""The wire type of strings, bytes, messages and packed lists."""

_FIXED = {1: 8, 5: 4}  # wire type -> bytes

_HEAD = 20  # bytes of a tag and a length: two varints


class Buffer(Protocol):
    """Bytes that are read in slices."""

    def __getitem__(self, part: slice, /) -> bytes:
        """The bytes from ``part.start`` to ``part.stop``, fewer at the end."""


class FileBytes:
    """A file's bytes, read a window at a time: mapped into memory, all of it would count as used.

    Args:
        descriptor: of the open file.
    """

    _WINDOW = 1 << 16

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._start, self._held = descriptor, 0, b""

    def __getitem__(self, part: slice, /) -> bytes:
        """The bytes from ``part.start`` to ``part.stop``, fewer at the end of the file."""
        start, stop = part.start, part.stop
        if stop - start > self._WINDOW:
            pieces = range(start, stop, 1 << 24)
            return b"".join(self._read(at, min(stop, at + (1 << 24))) for at in pieces)
        if not self._start <= start <= stop <= self._start + len(self._held):
            self._start, self._held = start, self._read(start, start + self._WINDOW)
        return self._held[start - self._start : stop - self._start]

    def _read(self, start: int, stop: int) -> bytes:
        return os.pread(self._descriptor, stop - start, start)


class Field(NamedTuple):
    """One field of a message: where it starts, where its value starts, and where both end."""

    number: int
    kind: int
    start: int
    value: int
    end: int


def fields(buffer: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message between ``start`` and ``end``.

    Raises:
        ValueError: it is no message.
    """
    while start < end:
        lead = buffer[start : min(start + _HEAD, end)]
        tag, size = read_varint(lead, 0)
        number, kind = tag >> 3, tag & 7
        if kind == BYTES:
            length, size = read_varint(lead, size)
        elif kind == 0:
            length = read_varint(lead, size)[1] - size
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ValueError(f"wire type {kind} at {start}")
        stop = start + size + length
        if not number or stop > end:
            raise ValueError(f"a field at {start} does not end")
        yield Field(number, kind, start, start + size, stop)
        start = stop


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """(value, end) of the varint at ``start``.

    Raises:
        ValueError: there is none.
    """
    value = shift = 0
    for place in range(start, min(start + 10, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
    raise ValueError(f"no varint at {start}")


def varint(value: int) -> bytes:
    """A number that is not negative, as a varint."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def head(number: int, length: int) -> bytes:
    """What stands in front of a value of ``length`` bytes: the tag of its field, and the length."""
    return varint(number << 3 | BYTES) + varint(length)
