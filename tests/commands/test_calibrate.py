"""bnpass calibrate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx

from tests.commands.helpers import Run, files


def tensors(path: Path) -> dict[str, np.ndarray]:
    model = onnx.load(path)
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_statistics_are_those_of_the_data(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("calibrate", normed, "--data", data, "-o", out)
    assert result.code == 0, result.err
    assert "next: bnpass fold" in result.out.splitlines()[-1]
    found = tensors(out)
    values = np.load(data)["x"] @ found["w0"] + found["b0"]
    np.testing.assert_allclose(found["h0_mean"], values.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["h0_var"], values.var(0), rtol=1e-4)
    np.testing.assert_array_equal(found["h0_gamma"], tensors(normed)["h0_gamma"])


def test_the_conversion_is_recorded_in_the_model(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    bnpass("calibrate", normed, "--data", data, "-o", out, "--scale", "0.5")
    recorded = {p.key: p.value for p in onnx.load(out).metadata_props}["bnpass.data"]
    assert json.loads(recorded)["scale"] == 0.5
    again = bnpass("verify", out, out, "--data", data, "--json")
    assert again.document["data"]["scale"] == 0.5
    assert "as recorded in the model" in again.err


def test_a_model_without_norms_is_copied(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("calibrate", plain, "--data", data, "-o", out)
    assert result.code == 0
    assert "nothing to do" in result.out
    assert bnpass("calibrate", plain, "--data", data, "-o", out, "--force",
                  "--require-change").code == 1


def test_json(bnpass: Run, normed: Path, data: Path, tmp_path: Path) -> None:
    document = bnpass("calibrate", normed, "--data", data, "-o", tmp_path / "o.onnx",
                      "--json").document
    assert document["norms"] == 1
    assert document["samples"] == 300
    assert document["command"] == "calibrate"


def test_nan_in_the_data_is_refused(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    x = np.zeros((20, 6), np.float32)
    x[7, 2] = np.nan
    np.savez(tmp_path / "bad.npz", x=x)
    before = files(tmp_path)
    result = bnpass("calibrate", normed, "--data", tmp_path / "bad.npz", "-o", tmp_path / "o.onnx")
    result.assert_refused(2, "sample 7 holds NaN")
    assert files(tmp_path) == before


def test_data_that_does_not_fit_is_refused(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((20, 7), np.float32))
    result = bnpass("calibrate", normed, "--data", tmp_path / "bad.npz", "-o", tmp_path / "o.onnx")
    result.assert_refused(2, "do not fit the model's input")
    assert not (tmp_path / "o.onnx").exists()


def test_no_output_is_a_usage_error(bnpass: Run, normed: Path, data: Path) -> None:
    bnpass("calibrate", normed, "--data", data).assert_refused(2, "no output", "-o")


def test_folding_a_moving_average_is_warned_about(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path
) -> None:
    trained, ready = tmp_path / "net.trained.onnx", tmp_path / "net.ready.onnx"
    common = ("--data", data, "-o")
    assert bnpass("train", normed, *common, trained, "--steps", "5", "--device", "cpu").code == 0
    warned = bnpass("fold", trained, "--dry-run")
    assert warned.code == 0
    assert "moving average" in warned.err and "bnpass calibrate" in warned.err
    assert bnpass("calibrate", trained, *common, ready).code == 0
    assert "moving average" not in bnpass("fold", ready, "--dry-run").err
    assert "moving average" not in bnpass("fold", normed, "--dry-run").err
    frozen = tmp_path / "frozen.onnx"
    bnpass("train", normed, *common, frozen, "--steps", "5", "--device", "cpu", "--freeze-bn")
    assert "moving average" not in bnpass("fold", frozen, "--dry-run").err
    assert bnpass("calibrate", trained, *common, ready, "--method", "ema", "--force").code == 0
    assert "moving average" in bnpass("fold", ready, "--dry-run").err
