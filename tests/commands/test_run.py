"""bnpass run: the whole job, and everything that can be wrong with its inputs."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.commands.helpers import CLASSES, FEATURES, Run, files, mlp, write

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ("--steps", "40", "--device", "cpu", "--lr", "0.3")
WRITTEN = [
    "checkpoints/best.pt", "checkpoints/last.pt", "curves.png", "deploy.onnx", "inserted.onnx",
    "metrics.csv", "report.html", "report.json", "trained.onnx",
]


def norms(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)


def test_the_whole_job(bnpass: Run, plain: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = bnpass("run", plain, "--data", data, "-o", out, *SHORT)
    assert result.code == 0, result.err
    assert files(out) == WRITTEN
    assert [norms(out / f"{name}.onnx") for name in ("inserted", "trained", "deploy")] == [1, 1, 0]
    report = json.loads((out / "report.json").read_text())
    assert report["schema"] == 1
    assert report["accuracy"]["deployed"] == report["accuracy"]["with BN"]
    assert report["accuracy"]["deployed"] > 0.8
    assert report["insert"]["inserted"] == report["insert"]["biases_dropped"] == 1
    assert report["fold"]["left"] == 0
    assert report["verify"]["passed"] is True
    assert report["data"]["recipe"]["shape"] == [FEATURES]
    assert "training with BN" in result.err
    for line in ("BatchNorm left in deploy.onnx", "two runs agree", "batch compositions agree"):
        assert line in result.out
    page = (out / "report.html").read_text(encoding="utf-8")
    for part in ("PASSED", "accuracy, deployed", "validation accuracy", "_bn</text>", "deployed",
                 f"bnpass run {plain} --data {data}"):  # fmt: skip
        assert part in page, part
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert rows[-1]["step"] == "40"


def test_the_deployed_model_computes_what_was_trained(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    bnpass("run", plain, "--data", data, "-o", out, *SHORT)
    shown = bnpass("verify", out / "trained.onnx", out / "deploy.onnx", "--data", data, "--json")
    assert shown.code == 0
    trained = {t.name: onnx.numpy_helper.to_array(t)
               for t in onnx.load(out / "trained.onnx").graph.initializer}
    start = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(plain).graph.initializer}
    assert (trained["w0"] != start["w0"]).any()


def test_the_arms_are_compared_each_at_its_own_rate(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = bnpass("run", plain, "--data", data, "-o", out, "--steps", "30", "--compare-plain",
                    "--lr-grid", "0.001,0.3", "--grid-steps", "10", "--json")
    assert result.code == 0, result.err
    report = result.document
    assert [arm["name"] for arm in report["arms"]] == ["with BN", "without BN"]
    for arm in report["arms"]:
        assert [trial["lr"] for trial in arm["trials"]] == [0.001, 0.3]
        best = max(arm["trials"], key=lambda trial: trial["merit"])
        assert arm["lr"] == best["lr"]
        assert arm["history"]["rows"][-1]["step"] == 30
    assert set(report["accuracy"]) == {"with BN", "without BN", "deployed"}
    assert files(out) == sorted([
        *WRITTEN, "metrics_plain.csv", "plain.onnx", "plain/checkpoints/best.pt",
        "plain/checkpoints/last.pt", "plain/metrics.csv"])
    assert norms(out / "plain.onnx") == 0


def test_each_arm_can_find_its_rate(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    report = bnpass("run", plain, "--data", data, "-o", tmp_path / "out", "--steps", "20",
                    "--compare-plain", "--lr", "auto", "--json").document
    rates = [arm["lr"] for arm in report["arms"]]
    assert all(rate not in (0.1, 0.3) and rate > 0 for rate in rates)
    assert [arm["trials"] for arm in report["arms"]] == [[], []]
    for name in ("lr_range.png", "lr_range_plain.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_percentiles_with_and_without_bn(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = bnpass("run", plain, "--data", data, "-o", out, *SHORT, "--compare-plain", "--watch",
                    "before:act0")
    assert result.code == 0, result.err
    spans = []
    for folder in (out, out / "plain"):
        rows = list(csv.DictReader((folder / "percentiles.csv").open()))
        assert rows[-1]["step"] == "40" and rows[-1]["value"] == "before:act0"
        spans.append(float(rows[0]["p85"]) - float(rows[0]["p15"]))
    assert 1.5 < spans[0] < 2.5  # what BN normalises
    assert abs(spans[1] - spans[0]) > 0.1
    assert (out / "percentiles.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_model(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    for name in "ab":
        bnpass("run", plain, "--data", data, "-o", tmp_path / name, *SHORT, "--seed", "5")
    assert (tmp_path / "a/deploy.onnx").read_bytes() == (tmp_path / "b/deploy.onnx").read_bytes()


def test_a_final_softmax_stays_in_the_deployed_file(
    bnpass: Run, data: Path, tmp_path: Path
) -> None:
    path = write(mlp(ending="Softmax"), tmp_path / "net.onnx")
    out = tmp_path / "out"
    report = bnpass("run", path, "--data", data, "-o", out, *SHORT, "--json").document
    assert onnx.load(out / "deploy.onnx").graph.node[-1].op_type == "Softmax"
    assert report["accuracy"]["deployed"] == report["accuracy"]["with BN"] > 0.8


def test_a_final_sigmoid_on_one_output(bnpass: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = (rng.normal(size=(200, FEATURES)) + 2 * y[:, None]).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    model = mlp(ending="Sigmoid")
    weight, bias = model.graph.initializer[2], model.graph.initializer[3]
    for tensor in (weight, bias):
        cut = onnx.numpy_helper.to_array(tensor)[..., :1].copy()
        tensor.CopyFrom(onnx.numpy_helper.from_array(cut, tensor.name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    report = bnpass("run", write(model, tmp_path / "net.onnx"), "--data", tmp_path / "data.npz",
                    "-o", tmp_path / "out", *SHORT, "--json").document
    assert report["accuracy"]["deployed"] == report["accuracy"]["with BN"] > 0.8


def test_a_fixed_batch_is_freed(bnpass: Run, data: Path, tmp_path: Path) -> None:
    model = mlp()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    out = tmp_path / "out"
    result = bnpass("run", write(model, tmp_path / "net.onnx"), "--data", data, "-o", out, *SHORT)
    assert result.code == 0, result.err
    assert onnx.load(out / "deploy.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_test_data_is_taken_from_where_it_is(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    held = np.load(data)
    np.savez(tmp_path / "test.npz", x=held["x"][:50], y=held["y"][:50])
    common = ("run", plain, "--data", data, *SHORT, "--json")
    given = bnpass(*common, "-o", tmp_path / "a", "--test-data", tmp_path / "test.npz").document
    assert given["data"]["test"] == 50
    split = bnpass(*common, "-o", tmp_path / "b").document
    assert split["data"]["test"] == 30
    assert "held out" in split["data"]["test_is"]


# -- bad input: one line error, one line hint, the exit code, nothing half written -----------------


@pytest.fixture
def refused(bnpass: Run, tmp_path: Path, data: Path):
    """Run on something bad; check the lines and that nothing was written."""

    def check(model: object, error: str, hint: str = "", *, code: int = 2, given: object = data,
              arguments: tuple[object, ...] = ()) -> None:
        before = files(tmp_path)
        out = () if "-o" in arguments else ("-o", tmp_path / "out")
        result = bnpass("run", model, "--data", given, *out, *SHORT, *arguments)
        result.assert_refused(code, error, hint)
        assert files(tmp_path) == before
        assert not (tmp_path / "out").exists()

    return check


def test_a_missing_model(refused, plain: Path) -> None:
    refused(plain.with_name("plan.onnx"), "no such file", "did you mean 'plain.onnx'?")


def test_a_model_that_is_none(refused, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07 garbage")
    refused(tmp_path / "x.onnx", "not an ONNX model", "exporter")


def test_a_model_without_nonlinearities(refused, tmp_path: Path) -> None:
    refused(write(mlp(kind=""), tmp_path / "linear.onnx"), "no nonlinearity", "--explain")


def test_an_unknown_operator(refused, tmp_path: Path) -> None:
    model = mlp(layers=3)
    model.graph.node[1].op_type = "Mystery"
    refused(write(model, tmp_path / "odd.onnx"), "Mystery")


def test_missing_data(refused, plain: Path, tmp_path: Path) -> None:
    refused(plain, "no such file", given=tmp_path / "no.npz")


def test_data_that_does_not_fit(refused, plain: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((50, 7), np.float32), y=np.arange(50) % CLASSES)
    refused(plain, "do not fit the model's input", given=tmp_path / "bad.npz")


@pytest.mark.parametrize("labels", [np.arange(50) % 5, np.arange(50) % 3 - 1])
def test_labels_that_do_not_fit(refused, plain: Path, tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((50, FEATURES), np.float32), y=labels)
    refused(plain, "label", given=tmp_path / "bad.npz")


def test_too_few_labels(refused, plain: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((50, FEATURES), np.float32), y=np.zeros(49, int))
    refused(plain, "50 samples but 49 labels", given=tmp_path / "bad.npz")


def test_no_labels(refused, plain: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((50, FEATURES), np.float32))
    refused(plain, "no labels", given=tmp_path / "bad.npz")


def test_nan_in_the_data(refused, plain: Path, tmp_path: Path) -> None:
    x = np.zeros((50, FEATURES), np.float32)
    x[3, 1] = np.nan
    np.savez(tmp_path / "bad.npz", x=x, y=np.arange(50) % CLASSES)
    refused(plain, "sample 3 holds NaN", given=tmp_path / "bad.npz")


def test_no_output_folder(bnpass: Run, plain: Path, data: Path) -> None:
    bnpass("run", plain, "--data", data).assert_refused(2, "no output folder", "-o DIR")


def test_an_output_that_exists(bnpass: Run, plain: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert bnpass("run", plain, "--data", data, "-o", out, *SHORT).code == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    bnpass("run", plain, "--data", data, "-o", out, *SHORT).assert_refused(
        2, "the output exists", "--force")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert bnpass("run", plain, "--data", data, "-o", out, *SHORT, "--force").code == 0


def test_an_output_that_is_a_file(refused, plain: Path, data: Path) -> None:
    refused(plain, "is a file", arguments=("-o", data))


def test_the_input_in_the_output_folder(bnpass: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    model = write(mlp(), out / "trained.onnx")
    bnpass("run", model, "--data", data, "-o", out, *SHORT, "--force").assert_refused(
        2, "the output is the input")
    assert files(out) == ["trained.onnx"]


def test_a_read_only_folder(bnpass: Run, data: Path) -> None:
    """As root, who may write anywhere, the test steps down to another user."""
    folder = Path(tempfile.mkdtemp())
    model = write(mlp(), folder / "net.onnx")
    samples = folder / "data.npz"
    samples.write_bytes(data.read_bytes())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        bnpass("run", model, "--data", samples, "-o", folder / "out", *SHORT).assert_refused(
            2, "cannot be made", "permissions")
        bnpass("insert", model, "-o", folder / "o.onnx").assert_refused(2, "cannot be written")
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
    assert files(folder) == ["data.npz", "net.onnx"]


def test_rates_that_all_diverge(bnpass: Run, data: Path, tmp_path: Path) -> None:
    path = write(mlp(kind="Relu", layers=4), tmp_path / "net.onnx")
    result = bnpass("run", path, "--data", data, "-o", tmp_path / "out", "--steps", "60",
                    "--compare-plain", "--lr-grid", "1e30,1e35")
    result.assert_refused(2, "diverged at every learning rate", "--lr-grid")
    assert not (tmp_path / "out" / "deploy.onnx").exists()


def test_an_interrupt_leaves_no_deployed_model(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnpass.training.calibrate", interrupt)
    result = bnpass("run", plain, "--data", data, "-o", tmp_path / "out", *SHORT)
    assert result.code == 130
    assert "deploy.onnx" not in files(tmp_path / "out")
    assert not [name for name in files(tmp_path / "out") if name.endswith(".tmp")]
