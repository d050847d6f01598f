from __future__ import annotations

import gzip
import json
import logging
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from bnpass.data import InputSpec, check_labels, from_arrays, open_data, splits
from bnpass.errors import InputError, UsageError

IMAGE = InputSpec(("N", 1, 4, 4))
FLAT = InputSpec((None, 16))


def digits(count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 4, 4), np.uint8), np.arange(count) % 5


def write_idx(path: Path, array: np.ndarray, *, zipped: bool = False) -> None:
    head = struct.pack(f">HBB{array.ndim}i", 0, 0x08, array.ndim, *array.shape)
    opener = gzip.open if zipped else open
    with opener(path, "wb") as stream:
        stream.write(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    x, y = digits()
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", x, zipped=True)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", y, zipped=True)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", x[::-1])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", y[::-1])
    return tmp_path


def test_npz_is_scaled_and_reshaped_for_the_model(tmp_path: Path) -> None:
    x, y = digits()
    np.savez(tmp_path / "d.npz", x=x, y=y)
    batch, labels = open_data(tmp_path / "d.npz", inputs=IMAGE).take(np.array([3, 1]))
    assert batch.dtype == np.float32
    assert batch.shape == (2, 1, 4, 4)
    np.testing.assert_allclose(batch[:, 0], x[[3, 1]] / 255, rtol=1e-6)
    assert labels is not None
    assert labels.tolist() == [3, 1]
    assert labels.dtype == np.int64


def test_npz_names_of_splits(tmp_path: Path) -> None:
    x, y = digits()
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    assert splits(path) == ("train", "test")
    assert len(open_data(path)) == 10
    assert len(open_data(path, split="test")) == 3


def test_idx_folder_gzipped_and_plain(idx_folder: Path) -> None:
    x, y = digits()
    train = open_data(idx_folder, inputs=FLAT)
    test = open_data(idx_folder, inputs=FLAT, split="t10k")
    assert splits(idx_folder) == ("train", "test")
    np.testing.assert_allclose(train.take(np.arange(10))[0], x.reshape(10, 16) / 255, rtol=1e-6)
    assert test.labels.tolist() == y[::-1].tolist()
    assert train.classes == 5


def test_idx_file_cut_off(idx_folder: Path) -> None:
    path = idx_folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="does not hold"):
        open_data(idx_folder, split="test")


def test_npy_pair_stays_on_disk(tmp_path: Path) -> None:
    x, y = digits()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    data = open_data(f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}", inputs=IMAGE)
    assert isinstance(data.x, np.memmap)
    assert data.take(np.arange(10))[0].shape == (10, 1, 4, 4)


def save_images(folder: Path, sizes: list[tuple[int, int]]) -> None:
    from PIL import Image

    for name, level in (("cat", 0), ("dog", 255)):
        (folder / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            Image.new("RGB", size, (level, level, 10 * i)).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("shape", [(None, 3, 4, 4), (None, 4, 4, 3)])
def test_image_folder_in_the_models_layout(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    save_images(tmp_path, [(4, 4), (8, 6)])
    data = open_data(tmp_path, inputs=InputSpec(shape))
    batch, labels = data.take(np.arange(4))
    assert batch.shape[1:] == shape[1:]
    assert data.class_names == ("cat", "dog")
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1]
    blue = batch[3, 2] if shape[1] == 3 else batch[3, :, :, 2]
    np.testing.assert_allclose(blue, 10 / 255, rtol=1e-5)
    np.testing.assert_allclose(batch[3].max(), 1)


def test_image_folder_train_and_test(tmp_path: Path) -> None:
    save_images(tmp_path / "train", [(4, 4)] * 3)
    save_images(tmp_path / "val", [(4, 4)])
    assert splits(tmp_path) == ("train", "test")
    grey = InputSpec((None, 1, 4, 4))
    assert len(open_data(tmp_path, inputs=grey)) == 6
    assert open_data(tmp_path, inputs=grey, split="val").take(np.arange(2))[0].shape[1] == 1


def test_image_folder_errors(tmp_path: Path) -> None:
    save_images(tmp_path, [(4, 4), (5, 5)])
    with pytest.raises(InputError, match="images of 2 sizes"):
        open_data(tmp_path)
    (tmp_path / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png: cannot be read"):
        open_data(tmp_path, inputs=InputSpec((None, 3, 4, 4))).take(np.arange(4))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a class without images"):
        open_data(tmp_path)


def test_callable_with_arrays_and_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_arrays.py").write_text(
        "import numpy as np\n"
        "def arrays(split='train'):\n"
        "    n = 6 if split == 'train' else 2\n"
        "    return np.ones((n, 4, 4), np.float32), np.arange(n)\n"
        "class Rows:\n"
        "    def __len__(self): return 5\n"
        "    def __getitem__(self, i): return np.full((4, 4), i, np.float32), i % 2\n"
        "def nothing(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert len(open_data("mine_arrays:arrays", inputs=IMAGE, split="test")) == 2
    rows = open_data("mine_arrays:Rows", inputs=IMAGE)
    batch, labels = rows.take(np.array([4, 0]))
    assert batch[:, 0, 0, 0].tolist() == [4, 0]
    assert rows.labels.tolist() == [0, 1, 0, 1, 0]
    assert labels is not None
    assert labels.tolist() == [0, 0]
    with pytest.raises(InputError, match="did you mean 'arrays'"):
        open_data("mine_arrays:array")
    with pytest.raises(InputError, match="returned int"):
        open_data("mine_arrays:nothing")
    with pytest.raises(InputError, match="cannot import"):
        open_data("not_there_at_all:data")


@pytest.mark.parametrize(
    ("stored", "wanted", "axes"),
    [
        ((4, 4, 3), (None, 3, 4, 4), (0, 3, 1, 2)),
        ((3, 4, 4), (None, 4, 4, 3), (0, 2, 3, 1)),
        ((5, 6, 3), (None, 3, None, None), (0, 3, 1, 2)),
        ((3, 5, 6), (None, 3, None, None), (0, 1, 2, 3)),
    ],
)
def test_layout_is_inferred(
    stored: tuple[int, ...], wanted: tuple[int | None, ...], axes: tuple[int, ...]
) -> None:
    x = np.random.default_rng(1).random((2, *stored), np.float32)
    got = from_arrays(x, inputs=InputSpec(wanted)).take(np.arange(2))[0]
    np.testing.assert_array_equal(got, x.transpose(axes))


def test_flat_rows_of_known_layout_become_channels_first() -> None:
    x = np.random.default_rng(1).random((2, 4, 4, 3), np.float32)
    flat = from_arrays(x, inputs=InputSpec((None, 48)), layout="nhwc").take(np.arange(2))[0]
    np.testing.assert_array_equal(flat, x.transpose(0, 3, 1, 2).reshape(2, 48))


def test_axes_in_an_unknown_order_are_not_guessed() -> None:
    with pytest.raises(InputError, match="in another order"):
        from_arrays(np.zeros((2, 4, 3, 5)), inputs=InputSpec((None, 3, 4, 5)))
    with pytest.raises(InputError, match=r"25 elements.*do not fit"):
        from_arrays(np.zeros((2, 5, 5)), inputs=IMAGE)


def test_normalise_each_channel() -> None:
    x = np.full((2, 4, 4, 3), 255, np.uint8)
    spec = InputSpec((None, 3, 4, 4))
    data = from_arrays(x, inputs=spec, mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0))
    np.testing.assert_allclose(data.take(np.arange(2))[0][0, :, 0, 0], [1, 1.5, 0.5])
    with pytest.raises(InputError, match="2 numbers to normalise with"):
        from_arrays(x, inputs=spec, mean=(0.5, 0.25))


def test_integer_model_keeps_integers() -> None:
    tokens = np.array([[1, 2, 300]], np.int32)
    batch, _ = from_arrays(tokens, inputs=InputSpec((None, None), "int64")).take(np.arange(1))
    assert batch.dtype == np.int64
    assert batch.tolist() == [[1, 2, 300]]
    with pytest.raises(InputError, match="the model takes int64"):
        from_arrays(tokens.astype(np.float32), inputs=InputSpec((None, None), "int64"))


def test_recipe_is_json_and_replays_without_the_model(tmp_path: Path) -> None:
    x, y = digits()
    np.savez(tmp_path / "d.npz", x=x, y=y)
    first = open_data(tmp_path / "d.npz", inputs=FLAT, mean=(0.1,), std=(0.3,))
    recorded = json.loads(json.dumps(first.recipe))
    again = open_data(tmp_path / "d.npz", recipe=recorded)
    index = np.arange(10)
    np.testing.assert_array_equal(first.take(index)[0], again.take(index)[0])
    np.savez(tmp_path / "e.npz", x=x.astype(np.float32), y=y)
    with pytest.raises(InputError, match="the recorded conversion is for uint8"):
        open_data(tmp_path / "e.npz", recipe=recorded)


def test_what_was_inferred_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bnpass.data"):
        from_arrays(digits()[0], inputs=FLAT)
    assert "uint8[4, 4] -> float32[16] -> divided by 255" in caplog.text


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.array([[1], [0]]), [1, 0]),
        (np.array([[0.0, 1.0], [1.0, 0.0]]), [1, 0]),
        (np.array([1.0, 0.0]), [1, 0]),
        (np.array([0.5, 0.0]), [0.5, 0.0]),
    ],
)
def test_labels_are_brought_to_one_form(y: np.ndarray, expected: list[float]) -> None:
    assert from_arrays(np.zeros((2, 3)), y).labels.tolist() == expected


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 4)), np.zeros(0), "no samples"),
        (np.zeros((3, 4)), np.zeros(2), "3 samples but 2 labels"),
        (np.array([[0.0], [np.nan]]), np.zeros(2), "sample 1 holds NaN"),
        (np.zeros((2, 1)), np.array([0.0, np.inf]), "labels hold NaN"),
        (np.array([["a"], ["b"]]), np.zeros(2), "not numbers"),
        (np.zeros((2, 1)), np.array(["a", "b"]), "labels are <U1, not numbers"),
    ],
)
def test_bad_arrays(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_arrays(x, y)


def test_nan_in_a_lazy_source_is_found_when_used(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnpass.data.opening._SCANNED", 0)
    x = np.zeros((5, 3), np.float32)
    x[3, 1] = np.nan
    data = from_arrays(x)
    data.take(np.arange(3))
    with pytest.raises(InputError, match="sample 3 holds NaN"):
        data.take(np.array([4, 3]))


@pytest.mark.parametrize("spec", ["nowhere.npz", "nowhere", "a.npy,b.npy", "a,b,c"])
def test_missing_files(spec: str) -> None:
    with pytest.raises(InputError):
        open_data(spec)


def test_files_of_the_wrong_kind(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK not really")
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        open_data(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", weights=np.zeros(3))
    with pytest.raises(InputError, match="holds weights, but no x"):
        open_data(tmp_path / "e.npz")
    np.savez(tmp_path / "f.npz", x=np.zeros((3, 1)))
    with pytest.raises(InputError, match="has no labels"):
        open_data(tmp_path / "f.npz")
    assert open_data(tmp_path / "f.npz", labels=False).y is None
    with pytest.raises(InputError, match="no IDX files and no images"):
        open_data(tmp_path)
    with pytest.raises(UsageError, match="unknown split"):
        open_data(tmp_path / "f.npz", split="dev")


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([{}, {}], dtype=object), y=np.zeros(2))
    with pytest.raises(InputError, match="cannot be read"):
        open_data(tmp_path / "p.npz")


def test_check_labels(caplog: pytest.LogCaptureFixture) -> None:
    assert check_labels(np.array([0, 1, 2]), 3) == ()
    assert check_labels(np.array([0, 2]), 3) == (1,)
    assert "no sample of class 1" in caplog.text
    with pytest.raises(InputError, match="labels from 1 to 10 do not fit 10 outputs") as caught:
        check_labels(np.arange(1, 11), 10)
    assert "subtract 1" in caught.value.hint
    with pytest.raises(InputError, match="labels from -1"):
        check_labels(np.array([-1, 0]), 3)
    with pytest.raises(InputError, match="not class numbers"):
        check_labels(np.array([0.5]), 3)


def test_split_is_disjoint_complete_and_seeded() -> None:
    x, y = digits(50)
    data = from_arrays(x, y)
    train, held = data.split(0.2, seed=3)
    again, _ = data.split(0.2, seed=3)
    assert (len(train), len(held)) == (40, 10)
    assert sorted([*train.rows, *held.rows]) == list(range(50))
    np.testing.assert_array_equal(train.rows, again.rows)
    assert set(held.rows) != set(data.split(0.2, seed=4)[1].rows)
    with pytest.raises(UsageError, match="empty part"):
        data.split(1.0)


def test_batches_cover_the_set_in_a_seeded_order() -> None:
    data = from_arrays(digits(10)[0], np.arange(10))
    def order(**options: int) -> list[int]:
        return [int(v) for _, b in data.batches(4, shuffle=True, **options) for v in b]
    assert sorted(order(seed=1)) == list(range(10))
    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)
    assert order(seed=1) != order(seed=1, epoch=1)
    assert [len(b) for b, _ in data.batches(4)] == [4, 4, 2]
    assert [len(b) for b, _ in data.batches(4, drop_last=True)] == [4, 4]


def test_cached_set_is_the_same_set() -> None:
    x, y = digits(20)
    part = from_arrays(x, y, inputs=FLAT).split(0.25)[0]
    cached = part.cached()
    index = np.array([3, 14, 0])
    for ours, theirs in zip(part.take(index), cached.take(index), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert part.cached() is cached
    assert cached.cached() is cached
    other = part.subset(np.arange(3))
    assert other.cached(limit=10) is other
    assert len(other.cached()) == 3


def test_images_are_decoded_when_asked_for_and_once(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    from bnpass.data.folder import ImageFiles

    paths = [tmp_path / f"{n}.png" for n in range(6)]
    for n, path in enumerate(paths):
        image.fromarray(np.full((4, 5), 10 * n, np.uint8)).save(path)
    decoded = []
    real = ImageFiles._decode
    monkeypatch.setattr(ImageFiles, "_decode", lambda self, path: (
        decoded.append(path.name), real(self, path))[1])
    files = ImageFiles(paths, (4, 5), 1, workers=1)
    assert decoded == []
    assert files[np.array([4, 1])][:, 0, 0, 0].tolist() == [40, 10]
    assert files[np.array([1, 1, 2, 4])][:, 0, 0, 0].tolist() == [10, 10, 20, 40]
    assert decoded == ["4.png", "1.png", "2.png"]
    monkeypatch.setattr(ImageFiles, "remembered", 10)
    files = ImageFiles(paths, (4, 5), 1, workers=1)
    for _ in range(2):
        assert files[np.array([3])][0, 0, 0, 0] == 30
    assert decoded[3:] == ["3.png", "3.png"]
