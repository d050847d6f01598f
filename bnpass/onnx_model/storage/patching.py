"""New data files of external tensors: what stays is copied by the kernel, the rest is written.

Folding keeps the shape of every weight, so the new data file is the old one with other bytes in
some places: memory stays near the largest tensor that changes, whatever the model's size, and no
byte is written twice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from bnpass import limits
from bnpass.files.groups import note_fresh
from bnpass.files.leftovers import new_data_name
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.storage.watching import changed, check, state

if TYPE_CHECKING:
    import onnx

_CHUNK = 1 << 30
APPEND_FROM = 1 << 16
"""New tensors of at least so many bytes go into the data file, smaller ones into the model."""


def copy_range(source: FileIO, target: FileIO, start: int, count: int, to: int) -> None:
    """Copy ``count`` bytes from ``start`` to ``to``, inside the kernel where that is possible."""
    while count > 0:
        done = _copied(source.fileno(), target.fileno(), start, min(count, _CHUNK), to)
        if done == 0:
            raise changed(source.name)
        start, count, to = start + done, count - done, to + done


def _copied(source: int, target: int, start: int, count: int, to: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, start, to)
        except OSError:  # another file system, an old kernel
            pass
    os.lseek(source, start, os.SEEK_SET)
    os.lseek(target, to, os.SEEK_SET)
    return os.write(target, os.read(source, min(count, 1 << 24)))


@dataclass(frozen=True)
class Staged:
    """New numbers of an external tensor that count once they are committed.

    Attributes:
        held: the numbers; None: they lie in the new file already, where they belong.
    """

    held: np.ndarray | None = None


class PatchedData:
    """New data files under fresh names, made of the old ones and what changes.

    Used as a context manager: the files go again unless :meth:`keep` was called. They are whole
    after :meth:`complete`.

    Args:
        model: its external tensors tell which files there are; it is not changed yet.
        folder: where they lie.
        output: the model file to be written; the new files are named after it, beside it.
        lasting: False: they only serve to make another file, and need not reach the disk.
    """

    def __init__(
        self, model: onnx.ModelProto, folder: Path, output: Path, *, lasting: bool = True
    ) -> None:
        self._folder, self._lasting = folder, lasting
        tensors = external.externals(model)
        places = [external.place(tensor, folder) for tensor in tensors]
        self._shared = external.overlapping(places)
        self._sources = {
            external.location(tensor): place.path
            for tensor, place in zip(tensors, places, strict=True)
        }
        self._ends = _ends(places)
        self._before = {source: state(source) for source in self._ends}
        target = Path(os.path.realpath(output))
        self.files = {source: new_data_name(target) for source in self._ends}
        self._written: dict[Path, dict[int, int]] = {}  # by old file: offset -> length
        self._kept = False

    def __enter__(self) -> PatchedData:
        for source, target in self.files.items():
            note_fresh(target)
            with target.open("xb") as file:
                file.truncate(self._ends[source])
            self._written[source] = {}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._kept:
            for target in self.files.values():
                target.unlink(missing_ok=True)

    def keep(self) -> None:
        """Let the new files stay."""
        self._kept = True

    def place(self, tensor: onnx.TensorProto) -> external.Place:
        """Where an external tensor's numbers lie now: in the new file if they were written."""
        fields = {entry.key: entry.value for entry in tensor.external_data}
        source, offset = self._sources[external.location(tensor)], int(fields.get("offset") or 0)
        length = int(fields.get("length") or external.nbytes(tensor) or 0)
        path = self.files[source] if offset in self._written[source] else source
        return external.Place(tensor.name, path, offset, length)

    def stage(self, tensor: onnx.TensorProto, pieces: Iterable[np.ndarray]) -> Staged:
        """Take other numbers for an external tensor, same type and shape, until they are committed.

        They are written at once, piece by piece. Those whose bytes other tensors hold too, or that
        were committed before and are still to be read, are held instead.
        """
        old = self.place(tensor)
        source = self._sources[external.location(tensor)]
        if (source, old.offset) in self._shared or old.offset in self._written[source]:
            return Staged(np.concatenate([piece.reshape(-1).copy() for piece in pieces]))
        self._patch(source, old, pieces)
        return Staged()

    def commit(self, tensor: onnx.TensorProto, staged: Staged) -> None:
        """Let the tensor have the numbers: in its place, or in one of its own if it shared that."""
        old = self.place(tensor)
        source = self._sources[external.location(tensor)]
        if (source, old.offset) in self._shared and staged.held is not None:
            self._append(tensor, [staged.held])
            return
        if staged.held is not None:
            self._patch(source, old, [staged.held])
        self._written[source][old.offset] = old.length

    def _patch(self, source: Path, old: external.Place, pieces: Iterable[np.ndarray]) -> None:
        with self.files[source].open("r+b", buffering=0) as file:
            file.seek(old.offset)
            length = _write(file, pieces)
            if self._lasting:
                send_to_disk(file, old.offset, length)
        if length != old.length:
            raise ValueError(f"{old.tensor!r} has {old.length} bytes, not {length}")

    def append(self, tensor: onnx.TensorProto, array: np.ndarray) -> None:
        """Put a new tensor's numbers behind the others and let the tensor point there."""
        tensor.dims[:] = array.shape
        tensor.data_type = _elem_type(array)
        self._append(tensor, [array])

    def _append(self, tensor: onnx.TensorProto, pieces: Iterable[np.ndarray]) -> None:
        location, source = next(iter(self._sources.items()))
        target = self.files[source]
        with target.open("r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            start = file.seek(-(-end // external.ALIGN) * external.ALIGN)
            length = _write(file, pieces)
        self._written[source][start] = length
        external.point(tensor, location, start, length)

    def complete(self) -> None:
        """Copy what was not written: all that stays as it is.

        Raises:
            InputError: an old file is not what it was when the work began.
        """
        for source, target in self.files.items():
            gaps = _gaps(self._written[source], self._ends[source])
            with external.opened(source) as old, target.open("r+b", buffering=0) as new:
                for start, end in gaps:
                    copy_range(old, new, start, end - start, start)
            check(source, self._before[source])

    def flush(self) -> None:
        """Write the new files to the disk."""
        for target in self.files.values():
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def redirect(self, tensors: Iterable[onnx.TensorProto]) -> None:
        """Let external tensors point to the copies."""
        for tensor in tensors:
            if external.is_external(tensor):
                source = self._sources[external.location(tensor)]
                fields = {entry.key: entry for entry in tensor.external_data}
                if "length" not in fields and self._has_grown(source):
                    length = external.place(tensor, self._folder).length
                    tensor.external_data.add(key="length", value=str(length))
                fields["location"].value = self.files[source].name

    def _has_grown(self, source: Path) -> bool:
        """Whether something was appended: what goes on to the file's end would be longer."""
        return self.files[source].stat().st_size > self._ends[source]


def _ends(places: Iterable[external.Place]) -> dict[Path, int]:
    """How much of each data file is copied: all of it, unless it is far more than tensors use.

    Then what lies behind the last tensor stays away.

    Raises:
        BudgetError: most of what lies in front of that is used by no tensor, either.
    """
    ends: dict[Path, int] = {}
    used: Counter[Path] = Counter()
    for place in places:
        ends[place.path] = max(ends.get(place.path, 0), place.offset + place.length)
        used[place.path] += place.length
    for path, end in ends.items():
        size = path.stat().st_size
        if size - used[path] <= limits.allowed("unused", used[path]):
            ends[path] = size
        else:
            limits.check("unused", end - used[path], f"external data {path.name!r}", used[path])
    return ends


def _write(file: FileIO, pieces: Iterable[np.ndarray]) -> int:
    """Write arrays one behind another; returns the bytes."""
    total = 0
    for piece in pieces:
        total += write_all(file, np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    return total


def write_all(file: FileIO, data: bytes | memoryview) -> int:
    """Write all of it, where the system takes less at a time; returns the bytes."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += file.write(view[done:]) or 0
    return done


def send_to_disk(file: FileIO, start: int, length: int) -> None:
    """Let the kernel begin to write while the next weights are worked out: fsync waits less."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)


def _gaps(written: dict[int, int], size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what lies below ``size`` and was not written."""
    end = 0
    for start, length in sorted(written.items()):
        if end < min(start, size):
            yield end, min(start, size)
        end = max(end, start + length)
    if end < size:
        yield end, size


def _elem_type(array: np.ndarray) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
