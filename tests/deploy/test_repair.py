"""A damaged network gets its original's statistics back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnpass
from bnpass.errors import InputError
from tests.helpers import Norm, build, nodes, run

RNG = np.random.default_rng(5)
SHAPES = {"a": (16, 3, 3, 3), "b": (16, 16, 3, 3), "c": (16, 16, 3, 3), "d": (16, 5)}
NET = """(float[N,3,8,8] x) => (float[N,5] y) {
  c1 = Conv <pads = [1,1,1,1]> (x, a, ab) r1 = Relu(c1)
  c2 = Conv <pads = [1,1,1,1]> (r1, b, bb) r2 = Relu(c2)
  c3 = Conv <pads = [1,1,1,1]> (r2, c, cb) r3 = Relu(c3)
  g = GlobalAveragePool(r3) f = Flatten(g) y = Gemm(f, d)
}"""


def network():
    weights = {k: (RNG.normal(size=s) / np.sqrt(np.prod(s[1:]) / 2)).astype(np.float32)
               for k, s in SHAPES.items()}  # fmt: skip
    biases = {f"{k}b": (0.3 * RNG.normal(size=16)).astype(np.float32) for k in "abc"}
    return build(NET, {**weights, **biases}, opset=17)


def damaged(model, harm):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.name in ("a", "b", "c"):
            array = harm(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return other


def pruned(array):
    return np.where(np.abs(array) < np.quantile(np.abs(array), 0.5), 0, array)


def rounded(array):
    step = np.abs(array).max() / 3
    return np.rint(array / step) * step


def shrunk(array):
    return 0.6 * array


BATCHES = [RNG.normal(size=(64, 3, 8, 8)).astype(np.float32) for _ in range(4)]
HELD_OUT = RNG.normal(size=(64, 3, 8, 8)).astype(np.float32)


def error(model, other):
    a, b = (run(m, {"x": HELD_OUT})["y"] for m in (model, other))
    return float(np.abs(a - b).mean() / np.abs(a - a.mean(0)).mean())


@pytest.mark.parametrize("harm", [pruned, rounded, shrunk])
def test_the_outputs_come_back(harm):
    model = network()
    harmed = damaged(model, harm)
    mended = bnpass.repair(model, harmed, BATCHES)
    onnx.checker.check_model(mended, full_check=True)
    assert [n.op_type for n in mended.graph.node] == [n.op_type for n in model.graph.node]
    assert error(model, mended) < 0.7 * error(model, harmed)


def test_what_only_shrank_comes_back_whole():
    model = network()
    assert error(model, bnpass.repair(model, damaged(model, shrunk), BATCHES)) < 0.02


def test_zeros_stay_zero():
    model = network()
    mended = bnpass.repair(model, damaged(model, pruned), BATCHES)
    (weight,) = [numpy_helper.to_array(t) for t in mended.graph.initializer if t.name == "b"]
    assert abs((weight == 0).mean() - 0.5) < 0.01


def test_an_undamaged_network_stays_what_it_is():
    model = network()
    assert error(model, bnpass.repair(model, model, iter(BATCHES))) < 1e-4


def test_a_network_with_norms_of_its_own_is_calibrated():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv <pads = [1,1,1,1]> (x, a) m = BN(c, n) y = Relu(m)
    }"""
    model = build(text, {"a": (16, 3, 3, 3), "n": Norm(16)}, opset=17)
    mended = bnpass.repair(model, damaged(model, shrunk), BATCHES)
    assert not any(n.op_type == "BatchNormalization" for n in nodes(mended.graph))


def test_other_graphs_are_refused():
    model = network()
    biases = {f"{k}b": (16,) for k in "abc"}
    other = build(NET.replace("Relu(c3)", "Tanh(c3)"), {**SHAPES, **biases})
    with pytest.raises(InputError, match="their nodes differ"):
        bnpass.repair(model, other, BATCHES)
