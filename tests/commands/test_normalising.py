"""bnpass fold --mean --std --scale, --fold-normalisation: the input's normalisation in the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import bnpass as library
from tests.commands.helpers import CLASSES, Run, write

MEAN, STD, SCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255
GIVEN = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--scale", "1/255")


def net(body: str, *, takes: str = "float[N,3,9,9] x", weights=((4, 3, 3, 3),)) -> onnx.ModelProto:
    text = f"""<ir_version: 9, opset_import: ["" : 20]>
    g ({takes}) => (float[N,M,P,Q] y) {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for number, shape in enumerate(weights):
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, f"w{number}"))
    return model


def outputs(model: object, x: np.ndarray) -> np.ndarray:
    session = library.session(model)
    return session.run(None, {session.get_inputs()[0].name: x.astype(np.float32)})[0]


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


TWO = ((4, 3, 3, 3), (4, 3, 3, 3))
IF = """c = Constant<value = bool {1}>()
        y = If(c) <then_branch = t () => (float[N,4,7,7] a) { a = Conv(x, w0) },
                   else_branch = e () => (float[N,4,7,7] b) { b = Conv(x, w0) }>"""


@pytest.mark.parametrize(("body", "takes", "weights", "left"), [
    ("a = Conv(x, w0) y = Relu(a)", "float[N,3,9,9] x", TWO[:1], ["Conv", "Relu"]),
    ("a = Conv <pads=[1,1,1,1]> (x, w0) y = Relu(a)", "float[N,3,9,9] x", TWO[:1],
     ["Sub", "Conv", "Relu"]),
    ("a = Conv <group=3> (x, w0) y = Relu(a)", "float[N,3,9,9] x", ((6, 1, 3, 3),),
     ["Conv", "Relu"]),
    ("a = Conv(x, w0) b = Conv(x, w1) y = Mul(a, b)", "float[N,3,9,9] x", TWO,
     ["Conv", "Conv", "Mul"]),
    ("a = Conv <pads=[1,1,1,1]> (x, w0) b = Conv <pads=[1,1,1,1]> (x, w1) y = Mul(a, b)",
     "float[N,3,9,9] x", TWO, ["Sub", "Conv", "Conv", "Mul"]),
    ("a = Relu(x) y = Conv(a, w0)", "float[N,3,9,9] x", TWO[:1], ["Sub", "Relu", "Conv"]),
    ("a = Sigmoid(x) y = Conv(a, w0)", "float[N,3,9,9] x", TWO[:1],
     ["Sub", "Div", "Sigmoid", "Conv"]),
    ("a = Conv(x, w0) b = ReduceMean(x) y = Add(a, b)", "float[N,3,9,9] x", TWO[:1],
     ["Sub", "Div", "Conv", "ReduceMean", "Add"]),
    ("t = Transpose <perm=[0,3,1,2]> (x) y = Conv(t, w0)", "float[N,9,9,3] x", TWO[:1],
     ["Transpose", "Conv"]),
    ("a = Conv <pads=[1,1,1,1]> (x, w0) y = Relu(a)", "float[N,C,H,W] x", TWO[:1],
     ["Sub", "Conv", "Relu"]),
    (IF, "float[N,3,9,9] x", TWO[:1], ["Sub", "Div", "Constant", "If"]),
], ids=["no padding", "zero padding", "grouped", "two readers", "two padded readers", "relu",
        "sigmoid", "a reader that takes nothing", "channels last", "open shapes", "inside If"])
def test_raw_samples_go_into_the_written_file(
    bnpass: Run, tmp_path: Path, body: str, takes: str, weights, left: list[str]
) -> None:
    model, out = net(body, takes=takes, weights=weights), tmp_path / "out.onnx"
    result = bnpass("fold", write(model, tmp_path / "net.onnx"), *GIVEN, "-o", out)
    assert result.code == 0, result.err
    assert "verified on" in result.out
    assert operators(out) == left
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert onnx.load(out).graph.input == model.graph.input
    last = "9,9,3" in takes
    x = np.random.default_rng(1).integers(0, 256, (5, 9, 9, 3) if last else (5, 3, 9, 9))
    shape = (1, 1, 1, 3) if last else (1, 3, 1, 1)
    mean, std = (np.reshape(v, shape) for v in (MEAN, STD))
    wanted = outputs(model, (x * SCALE - mean) / std)
    np.testing.assert_allclose(outputs(out, x), wanted, rtol=1e-4, atol=1e-4)


def test_what_stays_has_a_reason(bnpass: Run, tmp_path: Path) -> None:
    path = write(net("a = Sigmoid(x) y = Conv(a, w0)"), tmp_path / "net.onnx")
    shown = bnpass("fold", path, *GIVEN, "--explain", "--require-change")
    assert shown.code == 1
    assert "Sub and Div stay in front" in shown.out and "Sigmoid" in shown.out
    document = bnpass("fold", path, *GIVEN, "--dry-run", "--json").document
    assert document["normalisation"]["left"] == ["Sub", "Div"]
    assert "Sigmoid" in document["normalisation"]["reason"]
    assert document["normalisation"]["mean"] == list(MEAN)
    padded = write(net("y = Conv <pads=[1,1,1,1]> (x, w0)"), tmp_path / "padded.onnx")
    found = bnpass("fold", padded, *GIVEN, "--dry-run", "--json").document["normalisation"]
    assert (found["left"], found["into"]) == (["Sub"], ["y"])
    assert "zero padding" in found["reason"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "padded.onnx"]


def test_a_batchnorm_and_the_normalisation_fold_together(bnpass: Run, tmp_path: Path) -> None:
    model = net("n = BatchNormalization(x, g, b, m, v) y = Conv(n, w0)")
    rng = np.random.default_rng(2)
    for name in "gbmv":
        array = rng.uniform(0.5, 2, 3).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    out = tmp_path / "out.onnx"
    assert bnpass("fold", write(model, tmp_path / "net.onnx"), *GIVEN, "-o", out).code == 0
    assert operators(out) == ["Conv"]


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_narrowed_as_well(bnpass: Run, tmp_path: Path, to: str) -> None:
    path = write(net("a = Conv(x, w0) y = Relu(a)"), tmp_path / "net.onnx")
    result = bnpass("fold", path, *GIVEN, "--to", to, "-o", tmp_path / "out.onnx")
    assert result.code == 0, result.err
    assert "Sub" not in operators(tmp_path / "out.onnx")


def test_unfolded_to_the_byte(bnpass: Run, tmp_path: Path) -> None:
    path = write(net("a = Conv(x, w0) y = Relu(a)"), tmp_path / "net.onnx")
    out, sidecar, back = (tmp_path / name for name in ("out.onnx", "side.onnx", "back.onnx"))
    assert bnpass("fold", path, *GIVEN, "-o", out, "--sidecar", sidecar).code == 0
    assert bnpass("unfold", out, sidecar, "-o", back).code == 0
    assert back.read_bytes() == path.read_bytes()


def test_external_data_stays_external(bnpass: Run, tmp_path: Path) -> None:
    from bnpass.files import data_files, save_model

    model = net("a = Conv(x, w0) y = Relu(a)", weights=((8, 3, 9, 9),))
    save_model(model, tmp_path / "net.onnx", external=True)
    out = tmp_path / "out.onnx"
    assert bnpass("fold", tmp_path / "net.onnx", *GIVEN, "-o", out).code == 0
    assert len(data_files(out)) == 1
    x = np.random.default_rng(1).integers(0, 256, (2, 3, 9, 9))
    mean, std = (np.reshape(v, (1, 3, 1, 1)) for v in (MEAN, STD))
    np.testing.assert_allclose(outputs(out, x), outputs(model, (x * SCALE - mean) / std),
                               rtol=1e-4, atol=1e-4)


def test_what_cannot_be(bnpass: Run, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out.onnx")
    path = write(net("y = Conv(x, w0)"), tmp_path / "net.onnx")
    bnpass("fold", path, "--mean", "1,2", *out).assert_refused(2, "2 numbers", "each channel")
    bnpass("fold", path, "--mean", "1,2,3", "--std", "1,2", *out).assert_refused(2, "3 means")
    bnpass("fold", path, "--mean", "nan", *out).assert_refused(2, "nan", "finite")
    bnpass("fold", path, "--std", "0", *out).assert_refused(2, "--std")
    bnpass("fold", path, "--scale", "1/0", *out).assert_refused(2, "--scale")
    takes = write(net("a = Cast <to=1> (x) y = Conv(a, w0)", takes="uint8[N,3,9,9] x"),
                  tmp_path / "bytes.onnx")
    bnpass("fold", takes, *GIVEN, *out).assert_refused(2, "'x' is no float tensor")
    result = bnpass("fold", path, "--fold-normalisation", *out)
    assert result.code == 0 and "no normalisation is recorded" in result.err


@pytest.mark.usefixtures("one_thread")
def test_what_training_recorded_goes_into_the_deployed_file(bnpass: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, 200)
    x = np.clip(60 * y[:, None, None, None] + rng.normal(60, 20, (200, 1, 5, 5)), 0, 255)
    np.savez(tmp_path / "data.npz", x=x.astype(np.uint8), y=y)
    text = """<ir_version: 9, opset_import: ["" : 20]> g (float[N,1,5,5] x) => (float[N,3] y) {
        a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w0) b = Sigmoid(a)
        f = Flatten(b) y = Gemm(f, w1) }"""
    model = onnx.parser.parse_model(text)
    for name, shape in (("w0", (2, 1, 3, 3)), ("w1", (50, CLASSES))):
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    path, out = write(model, tmp_path / "net.onnx"), tmp_path / "out"
    result = bnpass("run", path, "--data", tmp_path / "data.npz", "--mean", "0.4", "--std", "0.3",
                    "--steps", "30", "--lr", "0.3", "--device", "cpu", "--fold-normalisation",
                    "-o", out)
    assert result.code == 0, result.err
    deployed, trained = out / "deploy.onnx", out / "trained.onnx"
    assert operators(deployed) == ["Sub", "Conv", "Sigmoid", "Flatten", "Gemm"]
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"]["deployed"] == report["accuracy"]["with BN"] > 0.8
    raw = x.astype(np.uint8).astype(np.float32)
    np.testing.assert_allclose(outputs(deployed, raw), outputs(trained, (raw / 255 - 0.4) / 0.3),
                               rtol=1e-3, atol=1e-4)
    # The record follows, so that samples and random inputs are made for each as it takes them.
    for arguments in ((), ("--data", tmp_path / "data.npz")):
        assert bnpass("verify", trained, deployed, *arguments).code == 0
    again = tmp_path / "again.onnx"
    assert bnpass("fold", trained, "--fold-normalisation", "-o", again).code == 0
    assert operators(again) == operators(deployed)
    twice = bnpass("fold", deployed, "--fold-normalisation", "-o", tmp_path / "twice.onnx")
    assert "no normalisation is recorded" in twice.err
    other = bnpass("fold", trained, "--mean", "0.5", "--dry-run")
    assert "another normalisation" in other.err
