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


def test_a_weight_changed_by_a_thousandth_is_found(
    bnpass: Run, plain: Path, tmp_path: Path
) -> None:
    result = bnpass("verify", plain, changed(1e-3, tmp_path), "--json")
    document = result.document
    least = max(found["tolerance"] for found in document["outputs"].values())
    assert result.code == 1 and document["passed"] is False
    assert document["rtol"] < least < 1e-2
    for factor, code in ((1.01, 0), (0.99, 1)):
        again = bnpass("verify", plain, tmp_path / "changed.onnx", "--rtol", factor * least)
        assert again.code == code
        assert again.out.splitlines()[-1].startswith("FAILED" if code else "PASSED")


def test_the_last_line_has_the_smallest_tolerance_that_passes(
    bnpass: Run, plain: Path, tmp_path: Path
) -> None:
    last = bnpass("verify", plain, changed(1e-3, tmp_path)).out.splitlines()[-1]
    least = float(last.split("would pass at rtol ")[1].split(";")[0])
    assert bnpass("verify", plain, tmp_path / "changed.onnx", "--rtol", 1.1 * least).code == 0


def test_a_missing_output_is_an_error_that_names_it(
    bnpass: Run, plain: Path, tmp_path: Path
) -> None:
    model = mlp()
    model.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("a0", 1, ["N", 8]))
    more = write(model, tmp_path / "more.onnx")
    bnpass("verify", more, plain).assert_refused(2, "'a0'")


def test_nan_fails(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    result = bnpass("verify", plain, changed(float("nan"), tmp_path), "--json")
    assert result.code == 1
    assert result.document["outputs"]["h1"]["nonfinite"] > 0
    shown = bnpass("verify", plain, tmp_path / "changed.onnx", "--rtol", 1e9)
    assert shown.out.splitlines()[-1].startswith("FAILED"), "no tolerance lets NaN pass"


def in_training_mode(tmp_path: Path) -> Path:
    model = add_norm(mlp())
    norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    norm.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    norm.output.extend(["running_mean", "running_var"])
    return write(model, tmp_path / "training.onnx")


def test_batch_statistics_left_in_fail_and_are_named(
    bnpass: Run, normed: Path, tmp_path: Path
) -> None:
    path = in_training_mode(tmp_path)
    result = bnpass("verify", normed, path)
    assert result.code == 1
    assert "'bn' of the candidate is in training mode" in result.err
    alone = bnpass("verify", path, "--determinism", "--json")
    assert alone.code == 1
    assert "'bn' is in training mode" in alone.document["determinism"]["reasons"][0]
    assert alone.document["passed"] is False


def test_determinism_of_one_model(bnpass: Run, plain: Path) -> None:
    result = bnpass("verify", plain, "--determinism")
    assert result.code == 0, result.err
    for kind in ("the same input twice", "another batch position", "batches of 7",
                 "1 and 2 threads", "a fresh process"):
        row = next(line for line in result.out.splitlines() if kind in line)
        assert "yes" in row
    assert result.out.splitlines()[-1].startswith("PASSED")


def test_determinism_on_top_of_a_comparison(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    path = in_training_mode(tmp_path)
    result = bnpass("verify", path, path, "--determinism", "--rtol", 1)
    lines = result.out.splitlines()
    assert result.code == 1
    assert any(line.startswith("not deterministic: BatchNormalization 'bn'") for line in lines)
    assert lines[-1].startswith("FAILED")


def test_determinism_on_data(bnpass: Run, plain: Path, data: Path) -> None:
    arguments = ("verify", plain, "--determinism", "--data", data, "--split", "train", "--json")
    document = bnpass(*arguments).document
    checks = {c["name"]: c["equal"] for c in document["determinism"]["checks"]}
    assert checks["batches of 64"] is True
    assert document["passed"] is True


def test_one_model_is_enough_for_determinism_only(bnpass: Run, plain: Path) -> None:
    bnpass("verify", plain).assert_refused(2, "no candidate", "bnpass verify A B")
    bnpass("verify", plain, "--determinism", "--accuracy").assert_refused(2, "no candidate")


def test_the_accuracy_says_who_is_nearer(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    result = bnpass("verify", plain, changed(1e-3, tmp_path), "--accuracy", "--rtol", "0.5")
    assert result.code == 0
    assert "accuracy: the reference is nearer to float64" in result.out
    table = result.out.split("conditioning")[1]
    assert "fc0" in table and "fc1" in table


def test_the_accuracy_in_json_on_data(bnpass: Run, normed: Path, data: Path) -> None:
    document = bnpass("verify", normed, normed, "--accuracy", "--data", data, "--json").document
    accuracy = document["accuracy"]
    assert {c["node"] for c in accuracy["conditioning"]} == {"fc0", "fc1"}
    assert accuracy["outputs"]["h1"]["rewrite"] == 0
    assert "warnings" not in document


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


def test_options_of_a_gpu_are_refused_on_the_cpu(bnpass: Run, normed: Path) -> None:
    bnpass("verify", normed, normed, "--tf32").assert_refused(2, "--tf32 with --provider cpu")
    bnpass("verify", normed, normed, "--provider-option", "a=b").assert_refused(
        2, "--provider-option with --provider cpu")
