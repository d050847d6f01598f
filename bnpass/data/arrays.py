"""Arrays in files: .npz with named arrays, .npy (memory-mapped), IDX as MNIST ships it."""

from __future__ import annotations

import ast
import contextlib
import gzip
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from bnpass import limits
from bnpass.data.damaged import reading
from bnpass.errors import InputError

Array = npt.NDArray[Any]
_PAIRS = (("x", "y"), ("images", "labels"), ("data", "targets"), ("data", "labels"), ("X", "y"))
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IMAGE_WORDS, _LABEL_WORDS = ("images",), ("labels",)
_NPY_HEAD = 10_000  # bytes, numpy's own limit
_SPLIT_WORDS = {"train": ("train",), "test": ("t10k", "test")}


def read_npz(path: Path, split: str) -> tuple[Array, Array | None]:
    """Samples and labels of an .npz: x and y (or images/labels, data/targets, x_train/y_train).

    Raises:
        InputError: no .npz, a damaged one, or no array that could be the samples.
        BudgetError: its arrays would take more memory than such a file may ask for.
    """
    with (
        reading(path, ".npz", "write it with numpy.savez(path, x=..., y=...)"),
        np.load(path, allow_pickle=False) as archive,
    ):
        names = list(archive.files)
        pair = find_pair(names, split)
        if pair is None:
            raise InputError(f"{path}: holds {', '.join(names) or 'no array'}, but no x",
                             "store the samples as x and the labels as y")
        x, y = pair
        wanted = [name for name in pair if name in names]
        _check_sizes(path, archive, wanted)
        samples, labels = archive[x], archive[y] if y in names else None
        for array in (samples, labels):
            if array is not None and not isinstance(array, np.ndarray):
                raise ValueError("it holds something that is no array")
        return samples, labels


def npz_names(path: Path) -> tuple[str, ...]:
    """The names of the arrays in an .npz; none for what is no .npz."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return tuple(archive.files)
    except Exception:  # noqa: BLE001 - whoever reads the samples says what is wrong
        return ()


def read_named(path: Path) -> dict[str, Array]:
    """Every array of an .npz by its name.

    Raises:
        InputError: no .npz, or a damaged one.
        BudgetError: its arrays would take more memory than such a file may ask for.
    """
    with (
        reading(path, ".npz", "write it with numpy.savez(path, NAME=...)"),
        np.load(path, allow_pickle=False) as archive,
    ):
        names = list(archive.files)
        _check_sizes(path, archive, names)
        found = {name: archive[name] for name in names}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError("it holds something that is no array")
        return found


def _check_sizes(path: Path, archive: Any, names: list[str]) -> None:
    """Refuse entries that say they are larger than they may be, or than they say elsewhere.

    numpy reserves the memory that an array's own head declares before it reads the first byte.
    """
    listed = {info.filename: info for info in archive.zip.infolist()}
    entries = [listed.get(f"{name}.npy") or listed[name] for name in names]
    total = sum(info.file_size for info in entries)
    limits.check("decompressed", total, f"{path}: unpacked, it", path.stat().st_size)
    for info in entries:
        with archive.zip.open(info) as stream:
            declared = declared_bytes(stream)
        if declared is not None and declared > info.file_size:
            raise ValueError(f"{info.filename} declares {declared} bytes and has {info.file_size}")


def declared_bytes(stream: Any) -> int | None:
    """Bytes of the array that a .npy head declares; None for no .npy.

    Raises:
        ValueError: its shape is none.
    """
    if stream.read(6) != np.lib.format.MAGIC_PREFIX:
        return None
    major = stream.read(2)[0]
    count = struct.unpack("<H", stream.read(2)) if major == 1 else struct.unpack(
        "<I", stream.read(4))
    if count[0] > _NPY_HEAD:
        raise ValueError(f"its head has {count[0]} bytes")
    head = ast.literal_eval(stream.read(count[0]).decode("latin1").strip())
    shape, kind = head["shape"], np.lib.format.descr_to_dtype(head["descr"])
    if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"its shape is {str(shape)[:60]}")
    return math.prod(shape) * kind.itemsize


def npz_splits(path: Path) -> tuple[str, ...]:
    """The splits that an .npz names (x_train, x_test), or none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
    except Exception:  # noqa: BLE001 - whoever reads the samples says what is wrong
        return ()
    return tuple(s for s in ("train", "test") if f"x_{s}" in names)


def find_pair(names: list[str], split: str) -> tuple[str, str] | None:
    """The names of the samples and of their labels, where they are called as people call them."""
    if f"x_{split}" in names:
        return f"x_{split}", f"y_{split}"
    # Of several pairs the one with both arrays there wins.
    for x, y in _PAIRS:
        if x in names and y in names:
            return x, y
    return next(((x, y) for x, y in _PAIRS if x in names), None)


def read_array(path: Path) -> Array:
    """One array of a .npy file (memory-mapped, so it may be larger than memory) or an IDX file.

    Raises:
        InputError: the file is missing, neither of the two, or cut off.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", "check the path given with --data")
    if path.suffix != ".npy":
        return read_idx(path)
    with reading(path, ".npy", "write it with numpy.save"):
        with path.open("rb") as stream:
            declared = declared_bytes(stream)
            behind = path.stat().st_size - stream.tell()
        if declared is not None and declared > behind:
            raise ValueError(f"its shape takes {declared} bytes, the file has {behind}")
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it holds something that is no array")
    return array


def read_idx(path: Path) -> Array:
    """The array in an IDX file, plain or gzipped.

    Source: the format's description at MNIST's home page: two zero bytes, the element type, the
    number of axes, the sizes as big-endian int32, then the elements, big-endian.

    Raises:
        InputError: the file is no IDX file, or cut off.
    """
    with reading(path, "an IDX file", "download it again"), _unpacked(path) as stream:
        dtype, shape = _idx_head(path, stream)
        declared = math.prod(shape) * dtype.itemsize
        limits.check("decompressed", declared, f"{path}: its shape {list(shape)}",
                     path.stat().st_size)
        content = stream.read(declared)
        more = stream.read(1)
    if len(content) < declared or more:
        what = "more bytes" if more else f"{len(content)} bytes"
        raise InputError(f"{path}: an IDX file with {what} does not hold {list(shape)}",
                         "it is cut off or damaged: download it again")
    array = np.frombuffer(content, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _idx_head(path: Path, stream: BinaryIO) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Element type and shape."""
    lead = stream.read(4)
    if len(lead) < 4 or lead[:2] != b"\0\0" or lead[2] not in _IDX_TYPES:
        raise InputError(f"{path}: is neither .npy nor an IDX file",
                         "IDX files start with two zero bytes (MNIST's are called *-idx3-ubyte)")
    sizes = stream.read(4 * lead[3])
    if len(sizes) < 4 * lead[3]:
        raise InputError(f"{path}: an IDX file that is cut off", "download it again")
    shape = struct.unpack(f">{lead[3]}i", sizes)
    if any(size < 0 for size in shape):
        raise InputError(f"{path}: an IDX file of shape {list(shape)}", "download it again")
    return np.dtype(_IDX_TYPES[lead[2]]), shape


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The file, or what is in it where it is gzipped."""
    with path.open("rb") as stream:
        gzipped = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        if not gzipped:
            yield stream
            return
        with gzip.open(stream, "rb") as unpacked:
            yield cast(BinaryIO, unpacked)


def idx_pair(folder: Path, split: str) -> tuple[Path, Path | None] | None:
    """The image and label files of one split in a folder as MNIST ships it, or ``None``."""
    images = _find_idx(folder, split, _IMAGE_WORDS)
    return None if images is None else (images, _find_idx(folder, split, _LABEL_WORDS))


def _find_idx(folder: Path, split: str, words: tuple[str, ...]) -> Path | None:
    for word in _SPLIT_WORDS.get(split, (split,)):
        for kind in words:
            found = sorted(p for p in folder.glob(f"*{word}*{kind}*idx*") if p.is_file())
            if found:
                return found[0]
    return None
