"""Arrays in files: .npz with named arrays, .npy (memory-mapped), IDX as MNIST ships it."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnpass.errors import InputError

Array = npt.NDArray[Any]
_PAIRS = (("x", "y"), ("images", "labels"), ("data", "targets"), ("data", "labels"), ("X", "y"))
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IMAGE_WORDS, _LABEL_WORDS = ("images",), ("labels",)
_SPLIT_WORDS = {"train": ("train",), "test": ("t10k", "test")}


def read_npz(path: Path, split: str) -> tuple[Array, Array | None]:
    """Samples and labels of an .npz: x and y (or images/labels, data/targets, x_train/y_train).

    Raises:
        InputError: no .npz, or no array that could be the samples.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            pair = _find_pair(names, split)
            if pair is None:
                raise InputError(f"{path}: holds {', '.join(names) or 'no array'}, but no x",
                                 "store the samples as x and the labels as y")
            x, y = pair
            return archive[x], archive[y] if y in names else None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as .npz: {error}",
                         "write it with numpy.savez(path, x=..., y=...)") from error


def npz_splits(path: Path) -> tuple[str, ...]:
    """The splits that an .npz names (x_train, x_test), or none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
    except (ValueError, OSError, zipfile.BadZipFile):
        return ()
    return tuple(s for s in ("train", "test") if f"x_{s}" in names)


def _find_pair(names: list[str], split: str) -> tuple[str, str] | None:
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
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as .npy: {error}",
                         "write it with numpy.save") from error
    return array


def read_idx(path: Path) -> Array:
    """The array in an IDX file, plain or gzipped.

    Source: the format's description at MNIST's home page: two zero bytes, the element type, the
    number of axes, the sizes as big-endian int32, then the elements, big-endian.

    Raises:
        InputError: the file is no IDX file, or cut off.
    """
    content = _read_maybe_gzipped(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise InputError(f"{path}: is neither .npy nor an IDX file",
                         "IDX files start with two zero bytes (MNIST's are called *-idx3-ubyte)")
    dtype, rank = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise InputError(f"{path}: an IDX file that is cut off", "download it again")
    shape = tuple(int(size) for size in np.frombuffer(content, ">i4", rank, offset=4))
    if len(content) - start != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise InputError(f"{path}: an IDX file of {len(content)} bytes does not hold {list(shape)}",
                         "it is cut off or damaged: download it again")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_maybe_gzipped(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            gzipped = stream.read(2) == b"\x1f\x8b"
        if gzipped:
            with gzip.open(path, "rb") as unpacked:
                return unpacked.read()
        return path.read_bytes()
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: cannot be read: {error}", "download it again") from error


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
