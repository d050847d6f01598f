"""Draw a small, fixed sample of MNIST: ``python make_sample.py FOLDER [OUTPUT_FOLDER]``.

FOLDER holds the four files of MNIST under their original names (``train-images-idx3-ubyte.gz``
and so on). The sample is written in the same format and under the same names, so that whatever
reads MNIST reads it: 10,000 images of the training set and 2,000 of the test set. Each digit
keeps the share that it has in the original, the order is a seeded shuffle, and the result is
the same bytes on every run. Needs numpy only.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np

SEED = 0
SIZES = {"train": 10_000, "t10k": 2_000}


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes (magic 0x08, then the rank, then the sizes)."""
    raw = gzip.decompress(path.read_bytes())
    kind, rank = raw[2], raw[3]
    if raw[:2] != b"\0\0" or kind != 0x08:
        raise SystemExit(f"error: {path} is no IDX file of unsigned bytes")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write unsigned bytes as gzipped IDX; no time stamp, so equal arrays give equal files."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0))


def shares(labels: np.ndarray, total: int) -> np.ndarray:
    """How many of each digit to draw: proportional, the largest remainders rounded up."""
    exact = np.bincount(labels, minlength=10) * total / len(labels)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def draw(labels: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``total`` indices into ``labels``, without repetition, each digit in proportion."""
    chosen = [
        rng.choice(np.flatnonzero(labels == digit), count, replace=False)
        for digit, count in enumerate(shares(labels, total))
    ]
    return rng.permutation(np.concatenate(chosen))


def main(arguments: list[str]) -> int:
    """Write the four sample files; return the exit code."""
    if len(arguments) not in (1, 2):
        print("usage: make_sample.py FOLDER_WITH_MNIST [OUTPUT_FOLDER]", file=sys.stderr)
        return 2
    source = Path(arguments[0])
    target = Path(arguments[1]) if len(arguments) == 2 else Path(__file__).parent
    rng = np.random.default_rng(SEED)
    for part, total in SIZES.items():
        images = read_idx(source / f"{part}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{part}-labels-idx1-ubyte.gz")
        index = draw(labels, total, rng)
        write_idx(target / f"{part}-images-idx3-ubyte.gz", images[index])
        write_idx(target / f"{part}-labels-idx1-ubyte.gz", labels[index])
        print(f"{part}: {total} images, per digit {np.bincount(labels[index]).tolist()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
