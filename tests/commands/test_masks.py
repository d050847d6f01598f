"""``--mask``: padded sequences through the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.commands.helpers import Run
from tests.commands.test_tasks import model

pytestmark = pytest.mark.usefixtures("one_thread")

TAGGER = """(float[N, T, 5] x) => (float[N, T, 3] y) {
  h = MatMul(x, w) r = Sigmoid(h) y = MatMul(r, c)
}"""
RNG = np.random.default_rng(3)
LENGTHS = RNG.integers(2, 12, 120)
COUNTED = np.arange(12) < LENGTHS[:, None]
X = np.where(COUNTED[..., None], RNG.normal(2, 1, (120, 12, 5)), 0).astype(np.float32)
Y = np.where(COUNTED, X[..., :3].argmax(2), -100)


@pytest.fixture
def tagger(bnpass: Run, tmp_path: Path) -> Path:
    given = model(TAGGER, tmp_path / "tagger.onnx", w=(5, 16), c=(16, 3))
    assert bnpass("insert", given, "-o", tmp_path / "bn.onnx").code == 0
    return tmp_path / "bn.onnx"


def statistics(path: Path) -> list[np.ndarray]:
    proto = onnx.load(path)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    norm = next(n for n in proto.graph.node if n.op_type == "BatchNormalization")
    return [held[name] for name in norm.input[3:5]]


def test_statistics_are_those_of_what_counts(bnpass: Run, tagger: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "padded.npz", x=X, y=Y, real=COUNTED)
    np.savez(tmp_path / "plain.npz", x=X, y=Y)
    np.savez(tmp_path / "alone.npz", x=X[COUNTED][:, None])  # no position sees its neighbours
    mask = ("--mask", "real")
    common = ("--steps", "30", "--lr", "0.3", "--device", "cpu", "-o", tmp_path / "t.onnx")
    for data, more in (("plain", ("--force",)), ("padded", (*mask, "--force"))):
        made = bnpass("train", tagger, "--data", tmp_path / f"{data}.npz", *common, *more)
        assert made.code == 0, made.err
        assert ("look like padding" in made.err) is (data == "plain")
    moving = statistics(tmp_path / "t.onnx")
    found = {}
    for name, more in (("padded", mask), ("alone", ()), ("plain", ())):
        done = bnpass("calibrate", tmp_path / "t.onnx", "--data", tmp_path / f"{name}.npz", "-o",
                      tmp_path / f"{name}.onnx", *more)
        assert done.code == 0, done.err
        assert ("look like padding" in done.err) is (name == "plain")
        found[name] = statistics(tmp_path / f"{name}.onnx")
    for ours, alone, plain, average in zip(*found.values(), moving, strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-4, atol=1e-5)
        assert not np.allclose(ours, plain, rtol=0.05)
        assert np.abs(average - ours).mean() < np.abs(average - plain).mean()
    assert bnpass("fold", tmp_path / "padded.onnx", "-o", tmp_path / "deploy.onnx").code == 0


BATCHES = """
import numpy as np

def batches(split="train"):
    held = np.load("padded.npz")
    return [{name: held[name][i:i + 40] for name in held} for i in range(0, 120, 40)]
"""


def test_a_mask_in_batches_and_one_that_is_an_input(
    bnpass: Run, tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("padded.npz", x=X, y=Y, real=COUNTED)
    Path("masks_of_test.py").write_text(BATCHES)
    out = ("--mask", "real", "--force", "-o")
    for data, name in (("padded.npz", "a.onnx"), ("masks_of_test:batches", "b.onnx")):
        done = bnpass("calibrate", tagger, "--data", data, *out, name)
        assert done.code == 0, done.err
    for ours, theirs in zip(statistics(Path("a.onnx")), statistics(Path("b.onnx")), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    done = bnpass("train", tagger, "--data", "masks_of_test:batches", *out, "c.onnx", "--epochs",
                  "2", "--device", "cpu")
    assert done.code == 0, done.err
    sys.modules.pop("masks_of_test")
    gated = model("(float[N, T, 5] x, float[N, T] real) => (float[N, T, 3] y) {"
                  " axes = Constant<value = int64[1] {2}>() m = Unsqueeze(real, axes)"
                  " h = MatMul(x, w) r = Sigmoid(h) k = Mul(r, m) y = MatMul(k, c) }",
                  tmp_path / "gated.onnx", w=(5, 16), c=(16, 3))
    assert bnpass("insert", gated, "-o", "gated.bn.onnx").code == 0
    np.savez("gated.npz", x=X, y=Y, real=COUNTED.astype(np.float32))
    done = bnpass("train", "gated.bn.onnx", "--data", "gated.npz", *out, "d.onnx", "--steps", "2",
                  "--device", "cpu")
    assert done.code == 0, done.err


def test_masks_that_do_not_fit(bnpass: Run, tagger: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    for command in ("train", "calibrate"):
        given = (command, tagger, "--data", data, "-o", tmp_path / "no.onnx", "--mask")
        for mask, said, hint in ((COUNTED[:7], "'real' of shape [7, 12] is not for 120", "row"),
                                 (COUNTED & False, "leaves no position", "not 0")):
            np.savez(data, x=X, y=Y, real=mask)
            bnpass(*given, "real").assert_refused(2, said, hint)
        np.savez(data, x=X, y=Y, real=COUNTED)
        bnpass(*given, "reel").assert_refused(2, "no array 'reel' for the mask", "holds x, y, real")
    for more in (("--virtual-batch", "20"), ("--norm", "renorm")):
        bnpass("train", tagger, "--data", data, "-o", tmp_path / "no.onnx", "--mask", "real",
               *more).assert_refused(2, "a mask with", "plain BN")
