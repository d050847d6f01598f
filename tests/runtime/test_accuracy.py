from __future__ import annotations

import json

import numpy as np
import pytest

from bnpass.runtime.accuracy import conditioning, measure_accuracy
from bnpass.runtime.engines import Float64Engine, Loaded
from bnpass.runtime.verify import verify
from tests.runtime.conftest import edit, text

pytest.importorskip("torch")


def test_equal_models(convnet):
    report = measure_accuracy(convnet, convnet)
    errors = report.outputs["y"]
    assert errors.rewrite == 0.0
    assert 0 < errors.reference < 1e-5 and 0 < errors.candidate < 1e-5
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_worse_candidate_is_told(convnet):
    worse = edit(convnet, "K1", lambda w: w.astype(np.float16).astype(np.float32))
    report = measure_accuracy(convnet, worse)
    assert report.nearer == "reference"
    assert report.outputs["y"].rewrite == pytest.approx(report.outputs["y"].candidate, rel=0.05)


def test_conditioning_names_the_layer(convnet, rng):
    """A large constant in front of conv2's BN: |mean| / sigma grows, and only there."""
    images = rng.normal(size=(50, 3, 8, 8)).astype(np.float32)
    before = {c.node: c.ratio for c in conditioning(convnet, [images])}
    assert set(before) == {"conv1", "conv2", "y"}
    shifted = edit(convnet, "t1", lambda t: t + np.float32(100))
    after = {c.node: c.ratio for c in conditioning(shifted, [images])}
    assert after["conv2"] > 20 * before["conv2"]
    assert after["conv1"] == before["conv1"]
    worst = conditioning(shifted, [images])[0]
    assert worst.expected == pytest.approx(6e-7 * worst.ratio)


def test_torch_float64_stands_in(monkeypatch):
    """With onnx's evaluator out of the way the importer runs a float64 convolution."""
    import bnpass.runtime.engines as engines

    monkeypatch.setattr(engines, "_SLOW", 0)
    model = text(
        " g (double[N,3,4,4] x) => (double[N,2,4,4] y) { y = Conv(x, w) }",
        w=np.random.default_rng(0).normal(size=(2, 3, 1, 1)),
    )
    report = verify(model, model)
    assert report.passed and report.reference_engine == "torch float64"


def test_float64_engine_of_a_model_without_weights():
    model = text(" g (float[N, 4] x) => (float[N, 4] y) { y = Sigmoid(x) }")
    found = Float64Engine(Loaded(model)).run({"x": np.zeros((2, 4), np.float32)})
    assert found["y"].dtype == np.float64
