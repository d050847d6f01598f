"""Training of networks that came from ONNX files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper

from bnpass.importer import to_torch, write_back
from bnpass.nn.norms import batch_norms
from bnpass.training import (
    TrainConfig,
    calibrate,
    evaluate,
    initialize,
    logits_module,
    train,
    value_module,
)
from tests.training.nets import blobs

CONFIG = TrainConfig(lr=0.3, batch_size=40, steps=60, device="cpu")


def model(ending: str, opset: int) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(f"""
        <ir_version: 7, opset_import: ["" : {opset}]>
        net (float[N, 12] x) => (float[N, 4] y) {{
            h = Gemm(x, W1, b1)
            n = BatchNormalization(h, gamma, beta, mean, var)
            s = Sigmoid(n)
            l = Gemm(s, W2, b2)
            y = {ending}(l)
        }}""")
    rng = np.random.default_rng(0)
    shapes = {"W1": (12, 16), "b1": (16,), "W2": (16, 4), "b2": (4,)}
    values = {k: rng.normal(0, 0.3, s).astype(np.float32) for k, s in shapes.items()}
    values |= {k: np.ones(16, np.float32) for k in ("gamma", "var")}
    values |= {k: np.zeros(16, np.float32) for k in ("beta", "mean")}
    for name, value in values.items():
        parsed.graph.initializer.append(numpy_helper.from_array(value, name))
    return parsed


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("ending", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_train_calibrate_and_write_back(ending: str, opset: int) -> None:
    proto = model(ending, opset)
    gm = to_torch(proto)
    x = torch.randn(5, 12)
    plain = logits_module(gm)(x)
    wanted = {"Softmax": plain.softmax(1), "LogSoftmax": plain.log_softmax(1),
              "Sigmoid": plain.sigmoid()}
    torch.testing.assert_close(gm(x), wanted[ending])
    data, held = blobs(800), blobs(200, seed=1)
    assert train(gm, data, held, CONFIG).accuracy > 0.9
    calibrate(gm, data)
    again = to_torch(write_back(gm, proto))
    assert evaluate(again, held, device="cpu") == evaluate(gm, held, device="cpu")
    (norm,) = batch_norms(again).values()
    assert norm.running_var.ne(1).all()


def test_values_by_their_onnx_names() -> None:
    gm = to_torch(model("Softmax", 17))
    x = torch.randn(5, 12)
    wanted = value_module(gm, "n")(x)
    torch.testing.assert_close(value_module(gm, "before:s")(x), wanted)
    history = train(gm, blobs(), None, replace(CONFIG, steps=2, watch=("before:s", "l")))
    assert [row[1] for row in history.percentiles] == ["before:s", "l"] * 2


def test_initialize_zeroes_the_biases() -> None:
    gm = initialize(to_torch(model("Softmax", 17)))
    assert gm.get_parameter("b1").eq(0).all()
    assert gm.get_parameter("b2").eq(0).all()
    assert gm.get_parameter("W1").abs().max() < (6 / 28) ** 0.5
