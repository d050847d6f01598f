"""The MNIST sample: its format, its make-up, and the script that draws it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[2] / "models" / "data"


@pytest.fixture(scope="module")
def make_sample() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sample", DATA / "make_sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("part", "total"), [("train", 10_000), ("t10k", 2_000)])
def test_sample_is_whole(make_sample: ModuleType, part: str, total: int) -> None:
    images = make_sample.read_idx(DATA / f"{part}-images-idx3-ubyte.gz")
    labels = make_sample.read_idx(DATA / f"{part}-labels-idx1-ubyte.gz")
    assert images.shape == (total, 28, 28)
    assert labels.shape == (total,)
    assert np.unique(labels).tolist() == list(range(10))
    assert len(np.unique(images.reshape(total, -1), axis=0)) == total, "an image appears twice"
    assert np.count_nonzero(np.diff(labels.astype(int))) > total / 2, "not sorted by class"


def test_no_test_image_is_among_the_training_images(make_sample: ModuleType) -> None:
    train, test = (
        {image.tobytes() for image in make_sample.read_idx(DATA / f"{p}-images-idx3-ubyte.gz")}
        for p in ("train", "t10k")
    )
    assert not train & test


def test_a_draw_is_proportional_seeded_and_repeatable(
    make_sample: ModuleType, tmp_path: Path
) -> None:
    source, first, again = (tmp_path / name for name in ("source", "first", "again"))
    for folder in (source, first, again):
        folder.mkdir()
    labels = np.repeat(np.arange(10, dtype=np.uint8), np.arange(1, 11) * 400)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None] + np.zeros((1, 2, 2), np.uint8)
    for part in make_sample.SIZES:
        make_sample.write_idx(source / f"{part}-images-idx3-ubyte.gz", images)
        make_sample.write_idx(source / f"{part}-labels-idx1-ubyte.gz", labels)
    assert make_sample.main([str(source), str(first)]) == 0
    assert make_sample.main([str(source), str(again)]) == 0
    for part, total in make_sample.SIZES.items():
        name = f"{part}-labels-idx1-ubyte.gz"
        assert (first / name).read_bytes() == (again / name).read_bytes()
        drawn = np.bincount(make_sample.read_idx(first / name), minlength=10)
        assert drawn.sum() == total
        exact = total * np.arange(1, 11) / 55
        assert np.abs(drawn - exact).max() < 1
