"""Networks for other tasks than the classes of one input, through the command line."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.commands.helpers import Result, Run

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = '<ir_version: 9, opset_import: ["" : 17]> g '
RNG = np.random.default_rng(5)


def model(text: str, path: Path, **shapes: tuple[int, ...]) -> Path:
    """A model as ONNX text, its weights drawn."""
    proto = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(1)
    for name, shape in shapes.items():
        values = rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1])))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(
            values.astype(np.float32), name))
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return path


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def steps(bnpass: Run, given: Path, data: object, folder: Path, *options: object) -> Result:
    """Insert, train, calibrate, fold (which proves itself); what training said."""
    names = [folder / f"{word}.onnx" for word in ("bn", "trained", "ready", "deploy")]
    assert bnpass("insert", given, "-o", names[0]).code == 0
    trained = bnpass("train", names[0], "--data", data, "-o", names[1], "--device", "cpu",
                     "--batch-size", "40", *options)
    assert trained.code == 0, trained.err
    ready = bnpass("calibrate", names[1], "--data", data, "-o", names[2])
    assert ready.code == 0, ready.err
    folded = bnpass("fold", names[2], "-o", names[3])
    assert folded.code == 0, folded.err
    left = [n.op_type for n in onnx.load(names[3]).graph.node]
    assert "BatchNormalization" in [n.op_type for n in onnx.load(names[2]).graph.node]
    assert "BatchNormalization" not in left
    return trained


def columns(folder: Path) -> dict[str, list[str]]:
    with (folder / "trained.run/metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return {name: [row[name] for row in rows] for name in rows[0]}


DETECTOR = """(float[N, 6] x) => (float[N, 4] boxes, float[N, 3] classes) {
  h = MatMul(x, w) r = Relu(h) boxes = MatMul(r, b) s = MatMul(r, c) classes = Softmax(s)
}"""


@pytest.fixture
def detector(tmp_path: Path) -> tuple[Path, Path]:
    given = model(DETECTOR, tmp_path / "detector.onnx", w=(6, 16), b=(16, 4), c=(16, 3))
    x = normal(240, 6)
    np.savez(tmp_path / "d.npz", x=x, boxes=x[:, :4] * 2, classes=x[:, :3].argmax(1))
    return given, tmp_path / "d.npz"


def test_detector_trains_both_outputs(bnpass: Run, detector, tmp_path: Path) -> None:
    given, data = detector
    said = steps(bnpass, given, data, tmp_path, "--steps", "60", "--lr", "0.1")
    assert "validation rmse" in said.out and "classes.accuracy" in said.out
    assert "-" not in said.out.split("classes.accuracy ")[1].split(" %")[0]
    found = columns(tmp_path)
    assert float(found["rmse"][-1]) < 0.6 * float(found["rmse"][0])
    assert float(found["classes.accuracy"][-1]) > 0.7
    assert found["validation_rmse"][-1] and found["validation_classes.accuracy"][-1]


def test_weights_of_heads_and_an_output_that_is_left_out(
    bnpass: Run, detector, tmp_path: Path
) -> None:
    given, data = detector
    out = ("-o", tmp_path / "o.onnx", "--steps", "2", "--device", "cpu", "--force")
    one = bnpass("train", given, "--data", data, *out, "--loss", "classes=cross_entropy", "--json")
    assert any("output boxes gets no gradient" in w for w in one.document["warnings"])
    losses = [bnpass("train", given, "--data", data, *out, "--json", "--loss",
                     f"boxes={factor}*mse").document["history"]["rows"][0]["loss"]
              for factor in (1, 4)]
    assert np.isclose(losses[1], 4 * losses[0])
    bnpass("train", given, "--data", data, *out, "--loss", "boxs=mse").assert_refused(
        2, "names 'boxs', no output", "boxes")
    bnpass("train", given, "--data", data, *out, "--loss", "boxes=mze").assert_refused(
        2, "unknown loss 'mze'", "mse")


def test_two_inputs_through_the_whole_job(bnpass: Run, tmp_path: Path) -> None:
    text = """(float[N, 4] x, int64[N, 2] ids) => (float[N, 3] y) {
      e = Gather(table, ids) shape = Constant<value = int64[2] {-1, 10}>()
      f = Reshape(e, shape) a = Concat<axis = 1>(x, f) h = MatMul(a, w) r = Tanh(h)
      y = MatMul(r, c)
    }"""
    given = model(text, tmp_path / "two.onnx", table=(7, 5), w=(14, 12), c=(12, 3))
    x, ids = normal(300, 4), RNG.integers(0, 7, (300, 2))
    label = (ids[:, 0] + (x[:, 0] > 0)) % 3
    data = tmp_path / "two.npz"
    np.savez(data, x=x.astype(np.float64), ids=ids.astype(np.int32), label=label)
    steps(bnpass, given, data, tmp_path, "--steps", "20")
    result = bnpass("run", given, "--data", data, "-o", tmp_path / "run", "--steps", "60",
                    "--batch-size", "40", "--lr", "0.3", "--device", "cpu", "--json")
    assert result.code == 0, result.err
    report = result.document
    assert report["metric"] == "accuracy" and report["fold"]["left"] == 0
    assert report["accuracy"]["deployed"] == report["accuracy"]["with BN"] > 0.5
    np.savez(data, x=x, label=label)
    for command in ("train", "calibrate"):
        bnpass(command, given, "--data", data, "-o", tmp_path / "no.onnx").assert_refused(
            2, "no array for input 'ids' (int64[N,2])", "the file holds x, label")


def test_segmentation_with_pixels_to_ignore(bnpass: Run, tmp_path: Path) -> None:
    text = """(float[N, 1, 6, 6] x) => (float[N, 3, 6, 6] y) {
      h = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(h) y = Conv(r, c)
    }"""
    given = model(text, tmp_path / "seg.onnx", w=(8, 1, 3, 3), c=(3, 8, 1, 1))
    x = normal(200, 1, 6, 6)
    y = np.digitize(x[:, 0], [-0.5, 0.5])
    y[:, 0] = 255
    np.savez(tmp_path / "seg.npz", x=x, y=y)
    said = steps(bnpass, given, tmp_path / "seg.npz", tmp_path, "--steps", "60", "--lr", "0.3",
                 "--ignore-index", "255")
    assert "validation miou" in said.out
    found = columns(tmp_path)
    assert float(found["miou"][-1]) > float(found["miou"][0]) + 0.2
    assert float(found["validation_accuracy"][-1]) > 0.7


CTC = """
import torch
from torch.nn import functional as F

def loss(outputs, targets):
    logs = outputs.log_softmax(-1).transpose(0, 1)
    lengths = torch.full((logs.shape[1],), len(logs))
    return F.ctc_loss(logs, targets["text"], lengths, targets["length"], zero_infinity=True)

def first_right(outputs, targets):
    best = outputs.argmax(-1)
    found = [next((int(c) for c in row if c), 0) for row in best]
    return sum(f == int(t[0]) for f, t in zip(found, targets["text"])) / len(found)
"""


def test_ctc_by_a_loss_and_a_metric_of_ones_own(
    bnpass: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """(float[N, 8, 5] x) => (float[N, 8, 4] y) {
      h = MatMul(x, w) r = Sigmoid(h) y = MatMul(r, c)
    }"""
    given = model(text, tmp_path / "ctc.onnx", w=(5, 12), c=(12, 4))
    words = RNG.integers(1, 4, (200, 3))
    length = RNG.integers(1, 4, 200)
    x = 0.3 * normal(200, 8, 5)
    for row, (word, n) in enumerate(zip(words, length, strict=True)):
        for position, letter in enumerate(word[:n]):
            x[row, 2 * position + 1, letter] += 2
    np.savez(tmp_path / "ctc.npz", x=x, text=words, length=length)
    (tmp_path / "ctc_of_test.py").write_text(CTC)
    monkeypatch.chdir(tmp_path)
    said = steps(bnpass, given, "ctc.npz", tmp_path, "--steps", "60", "--lr", "0.5",
                 "--loss", "ctc_of_test:loss", "--metric", "ctc_of_test:first_right")
    assert "validation first_right" in said.out
    found = columns(tmp_path)
    assert float(found["loss"][-1]) < 0.7 * float(found["loss"][0])
    assert found["validation_first_right"][-1] != "" and found["first_right"][-1] == ""
    sys.modules.pop("ctc_of_test")
    (tmp_path / "ctc_of_test.py").write_text("def loss(o, t):\n    return o['no such key']\n")
    bnpass("train", given, "--data", "ctc.npz", "-o", "no.onnx", "--steps", "1", "--loss",
           "ctc_of_test:loss").assert_refused(
        2, "ctc_of_test:loss failed: ", "outputs float32[60, 8, 4] and targets {text: int64[60, 3]")
    sys.modules.pop("ctc_of_test")


TORCHMETRICS = """
import torchmetrics

def three_classes():
    return torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="micro")

def two_numbers():
    return torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(),
                                          torchmetrics.MeanAbsoluteError()])

def endless():
    raise KeyError("no such setting")
"""


def test_metrics_of_torchmetrics(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    (tmp_path / "metrics_of_test.py").write_text(TORCHMETRICS)
    monkeypatch.chdir(tmp_path)
    common = ("--data", data, "--steps", "40", "--lr", "0.3", "--device", "cpu", "--force")
    for metric, name in (("auto", "accuracy"), ("metrics_of_test:three_classes", "three_classes")):
        done = bnpass("train", plain, *common, "-o", "trained.onnx", "--metric", metric)
        assert done.code == 0, done.err
        found = columns(tmp_path)[f"validation_{name}"]
        if metric == "auto":
            ours = found
    np.testing.assert_allclose([float(v) for v in found if v], [float(v) for v in ours if v],
                               rtol=1e-6)
    bnpass("train", plain, *common, "-o", "no.onnx", "--metric",
           "torchmetrics.classification:MulticlassAccuracy").assert_refused(
        2, "cannot be made without arguments", "a function of your own")
    bnpass("train", plain, *common, "-o", "no.onnx", "--metric", "metrics_of_test:endless"
           ).assert_refused(2, "metrics_of_test:endless cannot be made", "")
    text = "(float[N, 4] x) => (float[N, 4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, c) }"
    given = model(text, tmp_path / "r.onnx", w=(4, 12), c=(12, 4))
    x = normal(200, 4)
    np.savez("r.npz", x=x, y=2 * x)
    regression = ("train", given, "--data", "r.npz", "--steps", "20", "--device", "cpu", "--force")
    done = bnpass(*regression, "-o", "trained.onnx", "--metric", "torchmetrics:MeanSquaredError",
                  "--json")
    assert done.code == 0, done.err
    last = columns(tmp_path)
    assert np.isclose(float(last["validation_MeanSquaredError"][-1]),
                      float(last["validation_loss"][-1]), rtol=1e-5)
    bnpass(*regression, "-o", "no.onnx", "--metric", "metrics_of_test:two_numbers"
           ).assert_refused(2, "computed {MeanSquaredError", "one number")
    sys.modules.pop("metrics_of_test")


OWN = """
class Worst:
    def __init__(self):
        self.largest = 0.0

    def update(self, outputs, targets):
        self.largest = max(self.largest, float((outputs - targets).abs().max()))

    def compute(self):
        return self.largest

class Two(Worst):
    def compute(self):
        return {"a": 1, "b": 2}

class Broken(Worst):
    def compute(self):
        raise ZeroDivisionError("nothing there")

class Sized(Worst):
    def __init__(self, size):
        super().__init__()
"""


def test_classes_with_update_and_compute(
    bnpass: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "classes_of_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    text = "(float[N, 4] x) => (float[N, 4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, c) }"
    given = model(text, tmp_path / "r.onnx", w=(4, 12), c=(12, 4))
    np.savez("r.npz", x=(x := normal(200, 4)), y=2 * x)
    common = ("train", given, "--data", "r.npz", "--steps", "10", "--device", "cpu", "--force",
              "-o")
    done = bnpass(*common, "trained.onnx", "--metric", "classes_of_test:Worst")
    assert done.code == 0 and "validation Worst" in done.out, done.err
    row = {name: float(values[-1]) for name, values in columns(tmp_path).items() if values[-1]}
    assert row["validation_Worst"] > row["validation_loss"] ** 0.5
    for name, error, hint in (
        ("Two", "classes_of_test:Two computed {a: int, b: int}", "one number"),
        ("Broken", "classes_of_test:Broken failed: ZeroDivisionError: nothing there", "compute"),
        ("Sized", "classes_of_test:Sized cannot be made without arguments", "of your own"),
    ):
        bnpass(*common, "no.onnx", "--metric", f"classes_of_test:{name}").assert_refused(
            2, error, hint)
    sys.modules.pop("classes_of_test")


def test_regression_says_rmse_and_r2(bnpass: Run, tmp_path: Path) -> None:
    text = """(float[N, 4] x) => (float[N, 2] y) {
      h = MatMul(x, w) r = Relu(h) y = MatMul(r, c)
    }"""
    given = model(text, tmp_path / "reg.onnx", w=(4, 12), c=(12, 2))
    x = normal(240, 4)
    np.savez(tmp_path / "reg.npz", x=x, y=x[:, :2] * 3 + 1)
    said = steps(bnpass, given, tmp_path / "reg.npz", tmp_path, "--steps", "80", "--lr", "0.05")
    assert "accuracy" not in said.out + said.err
    assert "validation rmse" in said.out and "validation r2" in said.out
    assert float(columns(tmp_path)["validation_r2"][-1]) > 0.5


def test_several_labels_say_f1_and_map(bnpass: Run, tmp_path: Path) -> None:
    text = """(float[N, 4] x) => (float[N, 3] y) {
      h = MatMul(x, w) r = Relu(h) s = MatMul(r, c) y = Sigmoid(s)
    }"""
    given = model(text, tmp_path / "labels.onnx", w=(4, 12), c=(12, 3))
    x = normal(240, 4)
    np.savez(tmp_path / "labels.npz", x=x, y=(x[:, :3] > 0.3).astype(np.int64))
    said = steps(bnpass, given, tmp_path / "labels.npz", tmp_path, "--steps", "60", "--lr", "0.3")
    assert "validation f1" in said.out and "validation map" in said.out
    assert float(columns(tmp_path)["validation_map"][-1]) > 0.9


LOADERS = """
import numpy as np, torch
from torch.utils.data import DataLoader, TensorDataset

def numbers(split="train"):
    rng = np.random.default_rng(0 if split == "train" else 1)
    x = rng.normal(size=(200, 6)).astype("f4")
    return torch.from_numpy(x), torch.from_numpy(x[:, :3].argmax(1))

def loader(split="train"):
    return DataLoader(TensorDataset(*numbers(split)), batch_size=20, shuffle=True)

def endless():
    while True:
        x, y = numbers()
        for i in range(0, 200, 20):
            yield {"label": y[i:i + 20].numpy(), "x": x[i:i + 20].double().numpy()}

def batches():
    x, y = numbers()
    return list(zip(x.split(20), y.split(20)))
"""


def test_loaders_of_ones_own(
    bnpass: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loaders_of_test.py").write_text(LOADERS)
    monkeypatch.chdir(tmp_path)
    common = ("--device", "cpu", "--lr", "0.3", "--json")
    for name in ("loader", "batches", "endless"):
        out = tmp_path / f"{name}.onnx"
        result = bnpass("train", plain, "--data", f"loaders_of_test:{name}", "-o", out, "--steps",
                        "45", *common)
        assert result.code == 0, result.err
        history = result.document["history"]
        assert history["rows"][-1]["loss"] < history["rows"][0]["loss"]
        judged = [row for row in history["rows"] if row["validation_loss"] is not None]
        assert bool(judged) is (name == "loader")
        warned = any("nothing is validated" in w for w in result.document.get("warnings", []))
        assert warned is (name != "loader")
    again = bnpass("train", plain, "--data", "loaders_of_test:loader", "-o",
                   tmp_path / "again.onnx", "--steps", "45", *common)
    assert again.code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "loader.onnx").read_bytes()
    bnpass("train", plain, "--data", "loaders_of_test:endless", "-o", "no.onnx", *common[:4]
           ).assert_refused(2, "batches that cannot be counted", "--steps")
    bnpass("run", plain, "--data", "loaders_of_test:batches", "-o", "no", "--steps", "2"
           ).assert_refused(2, "none can be held out", "Dataset")
    sys.modules.pop("loaders_of_test")
