"""bnpass fold --to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bnpass.files import data_files, save_model
from tests.commands.helpers import Run, add_norm, files, mlp, write


def types(path: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(("to", "kind"), [("fp16", 10), ("bfloat16", 16)])
def test_folded_and_narrow(bnpass: Run, normed: Path, tmp_path: Path, to: str, kind: int) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("fold", normed, "-o", out, "--to", to)
    assert result.code == 0, result.err
    assert types(out) == {kind}
    assert "tolerance in" in result.out and "of 2 layers" in result.out
    assert "verified on" in result.out.split("tolerance in")[0], "the fold, for itself"
    assert "verified on" in result.out.split("tolerance in")[1], "the narrow model"
    assert bnpass("verify", normed, out).code == 0


def test_explain_shows_the_conditioning(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    result = bnpass("fold", normed, "-o", tmp_path / "out.onnx", "--to", "fp16", "--explain")
    table = result.out.split("conditioning")[1].split("tolerance")[0]
    assert "fc0" in table and "fc1" in table


def test_json_has_both_proofs(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    arguments = ("fold", normed, "-o", tmp_path / "out.onnx", "--to", "fp16", "--to-io", "--json")
    document = bnpass(*arguments).document
    assert document["narrow"]["dtype"] == "float16"
    assert document["verify_fold"]["dtype"] == "float32"
    assert document["verify_fold"]["rtol"] < document["verify"]["rtol"]
    assert document["verify"]["rtol"] == document["precision"]["rtol"]
    assert {c["node"] for c in document["precision"]["conditioning"]} == {"fc0", "fc1"}
    output = onnx.load(tmp_path / "out.onnx").graph.output[0]
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_an_overflow_writes_nothing(bnpass: Run, tmp_path: Path) -> None:
    model = add_norm(mlp())
    scale = next(t for t in model.graph.initializer if t.name == "h0_gamma")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.full(8, 3e6, np.float32), scale.name))
    path = write(model, tmp_path / "net.onnx")
    result = bnpass("fold", path, "-o", tmp_path / "out.onnx", "--to", "fp16")
    assert result.code == 2
    assert "Gemm 'fc0' does not fit float16" in result.errors[0]
    assert "bf16" in result.errors[1]
    assert files(tmp_path) == ["net.onnx"]


def test_external_data_stays_external(bnpass: Run, tmp_path: Path) -> None:
    model = mlp(layers=3)
    tensor = model.graph.initializer[0]
    wide = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    big = np.random.default_rng(0).normal(size=(3, 400)).astype(np.float32) / 20
    model.graph.initializer.append(onnx.numpy_helper.from_array(big, "big"))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["h2", "big"], ["z"], name="last"))
    port = onnx.helper.make_tensor_value_info("z", 1, ["N", 400])
    model.graph.output.append(port)
    path = save_model(add_norm(model), tmp_path / "net.onnx", external=True)
    assert data_files(path)
    out = tmp_path / "out.onnx"
    assert bnpass("fold", path, "-o", out, "--to", "fp16").code == 0
    assert [p.name.startswith("out.onnx.") for p in data_files(out)] == [True]
    assert types(out) == {onnx.TensorProto.FLOAT16}


def test_combinations_that_make_no_sense(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    out, sidecar = tmp_path / "out.onnx", tmp_path / "side"
    bnpass("fold", normed, "-o", out, "--to-io").assert_refused(2, "--to-io without --to")
    refused = bnpass("fold", normed, "-o", out, "--to", "fp16", "--sidecar", sidecar)
    refused.assert_refused(2, "cannot be unfolded")
    assert bnpass("fold", normed, "-o", out, "--to", "fp8").code == 2
    assert files(tmp_path) == ["normed.onnx"]
