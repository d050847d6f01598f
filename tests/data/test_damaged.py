"""Data files that are cut off, damaged, or ask for more than they are: one clear refusal each."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from bnpass.data import open_data
from bnpass.errors import InputError, UsageError
from bnpass.limits import BudgetError

PIXELS = np.arange(6 * 5 * 5, dtype=np.uint8).reshape(6, 5, 5)
LABELS = np.arange(6) % 3


def idx(values: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An IDX file of bytes, which may lie about its shape."""
    sizes = values.shape if shape is None else shape
    return bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}i", *sizes) + values.tobytes()


def npz(**arrays: np.ndarray) -> bytearray:
    """An .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return bytearray(buffer.getvalue())


def npy(shape: str, content: bytes = bytes(300)) -> bytes:
    """An .npy file whose head says what is given."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + content


def images(folder: Path, content: bytes) -> Path:
    """A folder with these images and good labels."""
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS.astype(np.uint8)))
    return folder


@pytest.mark.parametrize("damage", ["flip", "cut", "head", "behind"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    whole = bytearray(gzip.compress(idx(PIXELS)))
    if damage == "flip":
        whole[-6] ^= 0xFF  # in the checksum
    content = {"flip": whole, "cut": whole[:-20], "head": whole[:5],
               "behind": whole + b"rubbish"}[damage]
    with pytest.raises(InputError, match="train-images"):
        open_data(images(tmp_path, bytes(content)))


def test_gzip_with_more_than_its_shape(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not hold"):
        open_data(images(tmp_path, gzip.compress(idx(PIXELS) + bytes(1000))))


@pytest.mark.parametrize("shape", [(-6, 5, 5), (6, -5, -5), (2**31 - 1, 2**31 - 1, 2**31 - 1)])
def test_odd_idx_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="train-images"):
        open_data(images(tmp_path, idx(PIXELS, shape)))


def test_gzip_that_declares_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.zeros((8, 512, 512), np.uint8)
    folder = images(tmp_path, gzip.compress(idx(large)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(8, np.uint8)))
    monkeypatch.setenv("BNPASS_LIMITS", "decompressed=1M")
    with pytest.raises(BudgetError, match="train-images") as caught:
        open_data(folder)
    assert "BNPASS_LIMITS=decompressed=" in caught.value.hint
    monkeypatch.setenv("BNPASS_LIMITS", "decompressed=4M")
    assert len(open_data(folder)) == 8


def test_an_unknown_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNPASS_LIMITS", "decompresed=1M")
    with pytest.raises(UsageError, match="decompresed"):
        open_data(images(tmp_path, gzip.compress(idx(PIXELS))))


@pytest.mark.parametrize(("place", "bits"), [(6, 1), (6, 32), (8, 3), (60, 255)])
def test_damaged_npz(tmp_path: Path, place: int, bits: int) -> None:
    whole = npz(x=PIXELS, y=LABELS)
    whole[place] ^= bits
    if place < 10:
        whole[whole.find(b"PK\1\2") + place + 2] ^= bits  # flags and method are there twice
    (tmp_path / "d.npz").write_bytes(whole)
    with pytest.raises(InputError, match=r"d\.npz"):
        open_data(tmp_path / "d.npz")


def test_npz_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNPASS_LIMITS", "decompressed=1M")
    (tmp_path / "d.npz").write_bytes(npz(x=np.zeros((6, 1 << 20), np.uint8), y=LABELS))
    with pytest.raises(BudgetError, match=r"d\.npz"):
        open_data(tmp_path / "d.npz")


def test_npz_whose_array_declares_more_than_it_has(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", npy("(6, 100000, 100000)"))
        archive.writestr("y.npy", npy("(6,)", bytes(6)))
    with pytest.raises(InputError, match=r"x\.npy declares 60000000000 bytes"):
        open_data(tmp_path / "d.npz")


@pytest.mark.parametrize("shape", ["(-6, 5, 5)", "(6, -5, -10)", "(4611686018427387904, 5, 5)",
                                   "(6, 5, (5", "6", "(6.0, 5, 5)", "(True, 5, 5)", "['a']",
                                   "(6, 5, 5), 'more': 1", "(" * 200 + "6" + ")" * 200])
def test_odd_npy_heads(tmp_path: Path, shape: str) -> None:
    (tmp_path / "x.npy").write_bytes(npy(shape))
    np.save(tmp_path / "y.npy", LABELS)
    with pytest.raises(InputError, match=r"x\.npy"):
        open_data(f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}")


def png(width: int, height: int, content: bytes) -> bytes:
    """A grey PNG."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (struct.pack(">I", len(body)) + kind + body
                + struct.pack(">I", zlib.crc32(kind + body)))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content))
            + chunk(b"IEND", b""))


@pytest.mark.parametrize("size", [(40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_picture_that_says_it_is_huge(tmp_path: Path, size: tuple[int, int]) -> None:
    pytest.importorskip("PIL")
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "1.png").write_bytes(png(5, 5, bytes(30)))
    (tmp_path / "train" / "a" / "1.png").write_bytes(png(*size, bytes(1000)))
    with pytest.raises(InputError, match=r"1\.png"):
        open_data(tmp_path, resize=(5, 5)).take(np.arange(2))
