"""bnpass inspect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from bnpass.files import save_model
from tests.commands.helpers import Run, add_norm, files, mlp, write


def test_facts_of_a_model(bnpass: Run, normed: Path) -> None:
    result = bnpass("inspect", normed)
    assert result.code == 0, result.err
    for part in ("opset 17", "Gemm", "BatchNormalization", "(N, 6)", "fold:   1 of 1"):
        assert part in result.out
    assert files(normed.parent) == ["normed.onnx"]


def test_json(bnpass: Run, normed: Path) -> None:
    document = bnpass("inspect", normed, "--json").document
    assert document["operators"] == {"Gemm": 2, "BatchNormalization": 1, "Sigmoid": 1}
    assert document["parameters"] == 6 * 8 + 8 + 8 * 3 + 3 + 4 * 8
    assert document["bytes"] == normed.stat().st_size
    assert document["inputs"] == {"x": ["N", 6]}
    assert document["batch_norms"] == 1


def test_statistics_are_checked(bnpass: Run, tmp_path: Path) -> None:
    model = add_norm(mlp())
    values = {"h0_mean": np.zeros(8), "h0_var": np.ones(8)}
    for tensor in model.graph.initializer:
        if tensor.name in values:
            fresh = values[tensor.name].astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(fresh, tensor.name))
    result = bnpass("inspect", write(model, tmp_path / "net.onnx"))
    assert "never trained or calibrated" in result.out
    assert "dead weight" in result.out


def test_explain_lists_places_and_reasons(bnpass: Run, tmp_path: Path) -> None:
    path = write(mlp(ending="Sigmoid"), tmp_path / "net.onnx")
    shown = bnpass("inspect", path, "--explain").out
    assert "act0" in shown
    assert "--last includes it" in shown


def test_external_data_counts(bnpass: Run, tmp_path: Path) -> None:
    big = mlp()
    big.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(5000, np.float32), "big"))
    path = save_model(big, tmp_path / "net.onnx", external=True)
    document = bnpass("inspect", path, "--json").document
    assert document["bytes"] > 20000
    assert len(document["data_files"]) == 1


def test_a_missing_file_is_refused(bnpass: Run, plain: Path) -> None:
    bnpass("inspect", plain.with_name("plane.onnx")).assert_refused(2, "no such file", "plain.onnx")
