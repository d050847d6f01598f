"""bnpass repair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.commands.helpers import Run, mlp, write


def test_a_damaged_file_is_repaired(bnpass: Run, tmp_path: Path) -> None:
    model = mlp(kind="Relu", layers=3)
    write(model, tmp_path / "reference.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w"):
            array = 0.5 * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    write(model, tmp_path / "damaged.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(64, 6)).astype("f4"))
    out = tmp_path / "out.onnx"
    result = bnpass("repair", tmp_path / "reference.onnx", tmp_path / "damaged.onnx", "--data",
                    tmp_path / "data.npz", "-o", out)  # fmt: skip
    assert result.code == 0, result.err
    assert "2 BatchNorms (inserted), 0 stay" in result.out
    assert "every edit: right" in result.out and "verified on" in result.out
    assert [n.op_type for n in onnx.load(out).graph.node] == [n.op_type for n in model.graph.node]


def test_without_an_output(bnpass: Run, tmp_path: Path) -> None:
    path = write(mlp(), tmp_path / "m.onnx")
    bnpass("repair", path, path, "--data", "x").assert_refused(2, "no output given", "-o")
