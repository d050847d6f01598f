"""Weights from a file that let nothing through are noticed, and can be drawn anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

import bnpass  # noqa: E402
from bnpass.cli import main  # noqa: E402
from bnpass.training.health import stuck_nonlinearities  # noqa: E402

HEAD = '<ir_version: 8, opset_import: ["" : 17]> net'


def net(kind: str, scale: float, shift: float = 0.0) -> onnx.ModelProto:
    """Two layers of 16 with a nonlinearity each, and an output of 3."""
    text = f"""{HEAD} (float[N,8] x) => (float[N,3] y) {{
      a = Gemm(x, w, b)  c = {kind}(a)  d = Gemm(c, v, b)  e = {kind}(d)  y = Gemm(e, u)
    }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 16), "v": (16, 16), "u": (16, 3)}
    arrays = {k: rng.normal(size=s) * scale / np.sqrt(s[0]) for k, s in shapes.items()}
    arrays["b"] = np.full(16, shift)
    model.graph.initializer.extend(
        numpy_helper.from_array(a.astype(np.float32), k) for k, a in arrays.items()
    )
    return model


X = np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "scale", "shift", "stuck"),
    [("Tanh", 1, 0, 0), ("Tanh", 100, 0, 2), ("Sigmoid", 1, 0, 0), ("Sigmoid", 300, 0, 2),
     ("Relu", 1, 0, 0), ("Relu", 0.1, -9, 2), ("Relu", 100, 0, 0)],
)  # fmt: skip
def test_stuck(kind, scale, shift, stuck):
    gm = bnpass.to_torch(net(kind, scale, shift)).train()
    found, seen = stuck_nonlinearities(gm, X)
    assert (len(found), seen) == (stuck, 2) and gm.training


def test_train_says_so_and_draws_anew(tmp_path: Path, capfd):
    onnx.save(net("Tanh", 100.0), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=X, y=np.arange(32) % 3)
    call = ["train", str(tmp_path / "net.onnx"), "--data", str(tmp_path / "data.npz"), "--steps",
            "2", "--validation", "0.25", "--device", "cpu"]  # fmt: skip
    assert main([*call, "-o", str(tmp_path / "a.onnx")]) == 0
    assert "2 of 2 nonlinearities are saturated or dead" in capfd.readouterr().err
    assert main([*call, "-o", str(tmp_path / "b.onnx"), "--reinit", "glorot", "--lr", "1e-9"]) == 0
    assert "saturated" not in capfd.readouterr().err
    weights = {t.name: numpy_helper.to_array(t)
               for t in onnx.load(tmp_path / "b.onnx").graph.initializer}  # fmt: skip
    assert np.abs(weights["w"]).max() <= np.sqrt(6 / 24) + 1e-6 and weights["w"].std() > 0.1
