"""bnpass repair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnpass.frontends.onnx.folding import Folded, fold_model
from tests.commands.helpers import Run, mlp, write


def damaged(folder: Path) -> onnx.ModelProto:
    """Write a reference, the same with halved weights, and data; return the second."""
    model = mlp(kind="Relu", layers=3)
    write(model, folder / "reference.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w"):
            array = 0.5 * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    write(model, folder / "damaged.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(64, 6)).astype("f4"))
    return model


def test_a_damaged_file_is_repaired(bnpass: Run, tmp_path: Path) -> None:
    model = damaged(tmp_path)
    out = tmp_path / "out.onnx"
    result = bnpass("repair", tmp_path / "reference.onnx", tmp_path / "damaged.onnx", "--data",
                    tmp_path / "data.npz", "-o", out)  # fmt: skip
    assert result.code == 0, result.err
    assert "2 BatchNorms (inserted), 0 stay" in result.out
    assert "every edit: right" in result.out and "verified on" in result.out
    assert [n.op_type for n in onnx.load(out).graph.node] == [n.op_type for n in model.graph.node]


def test_a_wrong_fold_is_not_written(
    bnpass: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged(tmp_path)

    def wrong(model: onnx.ModelProto) -> Folded:
        done = fold_model(model)
        tensor = next(t for t in done.model.graph.initializer if len(t.dims) == 2)
        array = numpy_helper.to_array(tensor).copy()
        array[0, 0] += 0.1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return done

    monkeypatch.setattr("bnpass.deploy.repair.fold_model", wrong)
    given = (tmp_path / "reference.onnx", tmp_path / "damaged.onnx", "--data",
             tmp_path / "data.npz", "-o", tmp_path / "out.onnx")  # fmt: skip
    result = bnpass("repair", *given)
    assert result.code == 1 and "is wrong" in result.err
    assert not (tmp_path / "out.onnx").exists()
    assert bnpass("repair", *given, "--no-verify").code == 0


def test_without_an_output(bnpass: Run, tmp_path: Path) -> None:
    path = write(mlp(), tmp_path / "m.onnx")
    bnpass("repair", path, path, "--data", "x").assert_refused(2, "no output given", "-o")
