"""Weights that are inputs with defaults: both commands say so, and take them when told to."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from bnpass.cli import main
from tests.helpers import Norm, build


@pytest.fixture
def model(tmp_path: Path) -> str:
    made = build(
        """(float[N, 3, 6, 6] x, float[4, 3, 3, 3] W, float[4, 4] V) => (float[] y)
        { c = Conv(x, W)  d = BN(c, n)  t = Tanh(d)  g = GlobalAveragePool(t)
          f = Flatten(g)  m = MatMul(f, V)  r = Sigmoid(m)  y = MatMul(r, U) }""",
        {"W": (4, 3, 3, 3), "V": (4, 4), "U": (4, 2), "n": Norm(4)},
    )
    onnx.save(made, tmp_path / "m.onnx")
    return str(tmp_path / "m.onnx")


@pytest.mark.parametrize("explain", [True, False])
def test_fold(model: str, explain: bool, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fold", model, "--dry-run", *(["--explain"] if explain else [])]
    assert main(words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 of them because weights are inputs too" in text
    assert main([*words, "--freeze-inputs"]) == 0
    assert "1 of 1 maps would fold: 1 of 1 BatchNorm" in capsys.readouterr().out


def test_insert(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["insert", model, "--dry-run", "--explain"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "'V' is an input with a default" in text
    assert "1 of them because weights are inputs too" in text
    out = str(tmp_path / "o.onnx")
    assert main(["insert", model, "-o", out, "--freeze-inputs"]) == 0
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds.count("BatchNormalization") == 2
