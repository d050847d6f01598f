"""Small models for the runtime's tests, written as ONNX text where it reads well."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def text(body: str, **weights: np.ndarray) -> onnx.ModelProto:
    """Parse a model (header left out) and give it initializers."""
    model = onnx.parser.parse_model(HEAD + body)
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def edit(model: onnx.ModelProto, name: str, change) -> onnx.ModelProto:
    """Return a copy with one initializer's array changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    return copy


def array(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return an initializer's array."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def mlp(rng):
    """x (N, 6) -> Gemm -> Sigmoid -> Gemm -> y (N, 4)."""
    return text(
        """ mlp (float[N, 6] x) => (float[N, 4] y) {
            a = Gemm(x, W1, b1)
            h = Sigmoid(a)
            y = Gemm(h, W2, b2)
        }""",
        W1=rng.normal(size=(6, 8)).astype(np.float32),
        b1=rng.normal(size=8).astype(np.float32),
        W2=rng.normal(size=(8, 4)).astype(np.float32),
        b2=rng.normal(size=4).astype(np.float32),
    )


@pytest.fixture
def convnet(rng):
    """Two Conv-BN-Relu blocks with real statistics, a pool and a classifier of 5 classes."""

    def bn(index, channels):
        make = lambda low, high: rng.uniform(low, high, channels).astype(np.float32)  # noqa: E731
        return {
            f"s{index}": make(0.5, 1.5),
            f"t{index}": make(-1, 1),
            f"m{index}": make(-0.5, 0.5),
            f"v{index}": make(0.5, 2),
        }

    return text(
        """ net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            [conv1] c1 = Conv <pads = [1, 1, 1, 1]> (x, K1)
            [bn1] n1 = BatchNormalization <epsilon = 0.001> (c1, s1, t1, m1, v1)
            [relu1] r1 = Relu(n1)
            [conv2] c2 = Conv(r1, K2)
            [bn2] n2 = BatchNormalization(c2, s2, t2, m2, v2)
            [relu2] r2 = Relu(n2)
            g = GlobalAveragePool(r2)
            f = Flatten(g)
            y = Gemm(f, W)
        }""",
        K1=(0.5 * rng.normal(size=(4, 3, 3, 3))).astype(np.float32),
        K2=(0.3 * rng.normal(size=(6, 4, 3, 3))).astype(np.float32),
        W=rng.normal(size=(6, 5)).astype(np.float32),
        **bn(1, 4),
        **bn(2, 6),
    )
