"""bnpass verify."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.commands.helpers import Run, add_norm, mlp, write


def changed(amount: float, tmp_path: Path) -> Path:
    model = mlp()
    tensor = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] += amount
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return write(model, tmp_path / "changed.onnx")


def test_a_model_agrees_with_itself(bnpass: Run, plain: Path) -> None:
    result = bnpass("verify", plain, plain)
    assert result.code == 0
    assert result.out.splitlines()[-1].startswith("PASSED")


def test_a_changed_weight_is_found_and_located(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    result = bnpass("verify", plain, changed(0.01, tmp_path))
    assert result.code == 1
    assert result.out.splitlines()[-1].startswith("FAILED")
    assert "first difference: 'h0' of Gemm 'fc0'" in result.out


def test_a_wide_tolerance_lets_it_pass(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    assert bnpass("verify", plain, changed(0.01, tmp_path), "--rtol", "0.5").code == 0


def test_json_says_the_same(bnpass: Run, plain: Path, normed: Path) -> None:
    result = bnpass("verify", plain, normed, "--json")
    assert result.code == 1
    assert result.document["passed"] is False
    assert result.document["ok"] is False
    assert result.document["schema"] == 1
    assert result.document["outputs"]["h1"]["max_rel"] > 0.01


def test_data_is_used_when_given(bnpass: Run, plain: Path, data: Path) -> None:
    document = bnpass("verify", plain, plain, "--data", data, "--json").document
    assert document["draws"][0].startswith("data")
    assert document["data"]["shape"] == [6]


def test_models_with_other_inputs_are_refused(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    model = add_norm(mlp())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((7, 8), np.float32), weight.name))
    result = bnpass("verify", plain, write(model, tmp_path / "other.onnx"))
    assert result.code == 2
    assert len(result.errors) == 2


def test_a_provider_that_is_not_there_is_exit_3(bnpass: Run, plain: Path) -> None:
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        import ctypes

        try:
            ctypes.CDLL("libnvinfer.so.10")
        except OSError:
            pass
        else:
            return
    bnpass("verify", plain, plain, "--provider", "tensorrt").assert_refused(3, "Tensorrt")


def test_a_missing_file_is_exit_2(bnpass: Run, plain: Path) -> None:
    result = bnpass("verify", plain, plain.with_name("plan.onnx"))
    result.assert_refused(2, "no such file", "did you mean 'plain.onnx'?")
