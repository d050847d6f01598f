"""Data files of external tensors, copied by the kernel with some ranges patched.

Folding keeps the shape of every weight, so the new data file is the old one with other bytes in
some places: memory stays near the largest tensor that changes, whatever the model's size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from bnpass import external

if TYPE_CHECKING:
    import onnx

_CHUNK = 1 << 30
APPEND_FROM = 1 << 16
"""New tensors of at least so many bytes go into the data file, smaller ones into the model."""


def copy_file(source: Path, target: Path) -> None:
    """Copy a file inside the kernel; file systems that can share the blocks do."""
    with source.open("rb") as reader, target.open("xb") as writer:
        left = os.fstat(reader.fileno()).st_size
        while left > 0:
            done = _copy_range(reader.fileno(), writer.fileno(), min(left, _CHUNK))
            if done == 0:
                raise OSError(f"{source} became shorter while it was copied")
            left -= done


def _copy_range(source: int, target: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count)
        except OSError:  # another file system, an old kernel
            pass
    if hasattr(os, "sendfile"):
        return os.sendfile(target, source, None, count)
    return os.write(target, os.read(source, 1 << 24))


class Discarded:
    """Takes new numbers and forgets them: for a plan that is not carried out.

    Args:
        store: where numbers are read that an earlier pass has changed.
    """

    def __init__(self, store: PatchedData | None = None) -> None:
        self._store = store

    def place(self, tensor: onnx.TensorProto, folder: Path) -> external.Place:
        """Where an external tensor's numbers lie."""
        return (self._store or external).place(tensor, folder)

    def patch(self, tensor: onnx.TensorProto, array: np.ndarray) -> None:
        """Do nothing."""

    def append(self, tensor: onnx.TensorProto, array: np.ndarray) -> None:
        """Note the type and shape."""
        tensor.dims[:] = array.shape
        tensor.data_type = _elem_type(array)

    def restart(self) -> None:
        """Do nothing."""


class PatchedData:
    """Copies of a model's data files under fresh names, to be patched and extended.

    Used as a context manager: the copies go again unless :meth:`keep` was called.

    Args:
        model: its external tensors tell which files there are; it is not changed yet.
        folder: where they lie.
        output: the model file to be written; copies are named after it, beside it.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, output: Path) -> None:
        self._folder, self._output = folder, output
        places = external.places(model, folder)
        self.files: dict[Path, Path] = {}
        for source in dict.fromkeys(place.path for place in places):
            token = os.urandom(8).hex()
            self.files[source] = output.with_name(f"{output.name}.{token}.data")
        self._kept = False

    def __enter__(self) -> PatchedData:
        self.restart()
        return self

    def restart(self) -> None:
        """Copy the files, afresh if they were copied before: nothing is patched any more."""
        for source, target in self.files.items():
            target.unlink(missing_ok=True)
            copy_file(source, target)

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
        """Let the copies stay."""
        self._kept = True

    def place(self, tensor: onnx.TensorProto, folder: Path) -> external.Place:
        """Where an external tensor's numbers lie now: in the copy, changed or appended."""
        fields = {entry.key: entry.value for entry in tensor.external_data}
        source = folder / fields["location"]
        length = int(fields.get("length") or external.nbytes(tensor) or 0)
        return external.Place(
            tensor.name, self.files[source], int(fields.get("offset") or 0), length
        )

    def patch(self, tensor: onnx.TensorProto, array: np.ndarray) -> None:
        """Write other numbers over those of an external tensor, same type and shape."""
        place = self.place(tensor, self._folder)
        if array.nbytes != place.length:
            raise ValueError(f"{tensor.name!r} has {place.length} bytes, not {array.nbytes}")
        with place.path.open("r+b") as file:
            file.seek(place.offset)
            file.write(np.ascontiguousarray(array).data.cast("B") if array.nbytes else b"")

    def append(self, tensor: onnx.TensorProto, array: np.ndarray) -> None:
        """Put a new tensor's numbers behind the others and let the tensor point there."""
        source, target = next(iter(self.files.items()))
        with target.open("ab") as file:
            start = -(-file.tell() // external.ALIGN) * external.ALIGN
            file.write(bytes(start - file.tell()))
            file.write(np.ascontiguousarray(array).tobytes())
        tensor.dims[:] = array.shape
        tensor.data_type = _elem_type(array)
        external.point(tensor, source.relative_to(self._folder).as_posix(), start, array.nbytes)

    def flush(self) -> None:
        """Write the copies to the disk."""
        for target in self.files.values():
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def redirect(self, tensors: Iterable[onnx.TensorProto]) -> None:
        """Let external tensors point to the copies."""
        names = {source.resolve(): target.name for source, target in self.files.items()}
        for tensor in tensors:
            if external.is_external(tensor):
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = names[(self._folder / entry.value).resolve()]


Store = PatchedData | Discarded
"""Where new numbers of external tensors go."""


def _elem_type(array: np.ndarray) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
