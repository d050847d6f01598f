"""A pass of one's own: its edits alone say what a frontend changes, and the plan can be read."""

from __future__ import annotations

import numpy as np

from bnpass.frontends.onnx.apply import apply_edits
from bnpass.frontends.onnx.folding import fold_model
from bnpass.frontends.onnx.inserting import StripOptions, insert_model, strip_model
from bnpass.frontends.onnx.numbers import Calculation
from bnpass.frontends.onnx.read import read
from bnpass.ir.edits import AddedOperator, GraphEdits, NewConstant
from bnpass.ir.graph import Op
from bnpass.onnx_model.model import OnnxModel
from tests.fuzz.properties import PRESERVE
from tests.helpers import Norm, assert_same, build, feeds, run

TWO = """(float[N,6] x) => (float[N,4] y) {
  a = MatMul(x, u)
  s = Add(a, c)
  b = MatMul(s, v)
  y = Relu(b)
}"""


def applied(model, edits_of):
    """The model with the edits that a function plans for its view."""
    copy = OnnxModel.of(model).copy()
    reading = read(copy)
    edits = edits_of(reading.main.graph)
    numbers = Calculation(reading).numbers(reading.main, edits)
    apply_edits(copy, reading.main, edits, numbers)
    return copy.proto


def one_gemm(graph):
    """Two MatMuls with an Add between them as one Gemm."""
    first, add, second = (graph.producer(name) for name in "asb")
    u, v = (graph.constant(op.inputs[1]).float64() for op in (first, second))
    c = graph.constant(add.inputs[1]).float64()
    gemm = Op("joined", "Gemm", ["x"], ["b"], {"alpha": 0.5})
    constants = {1: 2 * (u @ v), 2: c @ v}
    return GraphEdits(added=(AddedOperator(gemm, constants, "b", second),))


def test_an_added_operator_replaces_a_region_whose_operators_go():
    model = build(TWO, {"u": (6, 5), "v": (5, 4), "c": (5,)})
    done = applied(model, one_gemm)
    assert [n.op_type for n in done.graph.node] == ["Gemm", "Relu"]
    assert {t.name for t in done.graph.initializer} == {"joined.1", "joined.2"}
    assert_same(model, done, rtol=1e-5)


def test_what_something_else_reads_stays():
    text = TWO.replace("(float[N,4] y)", "(float[N,4] y, float[N,5] z)").replace(
        "y = Relu(b)", "y = Relu(b)\n  z = Neg(a)"
    )
    model = build(text, {"u": (6, 5), "v": (5, 4), "c": (5,)})
    done = applied(model, one_gemm)
    assert [n.op_type for n in done.graph.node] == ["MatMul", "Gemm", "Relu", "Neg"]
    assert_same(model, done, rtol=1e-5)


def test_operators_may_be_added_in_a_row_and_constants_set():
    def edits(graph):
        relu = graph.producer("y")
        twice = Op("twice", "Mul", ["x"], ["twice_x"])
        shifted = Op("shifted", "Add", ["twice_x"], ["x_new"])
        matmul = graph.producer("b")
        return GraphEdits(
            added=(
                AddedOperator(twice, {1: np.asarray(2.0)}, "x", matmul),
                AddedOperator(shifted, {1: np.ones(3)}, "x", matmul),
                AddedOperator(Op("new", "MatMul", ["x_new", "w"], ["b"]), {}, "x", matmul),
            ),
            constants=(NewConstant(relu, 1, lambda: np.full(4, 0.5)),),
        )

    text = "(float[N,3] x) => (float[N,4] y) { b = MatMul(x, w) y = PRelu(b, s) }"
    model = build(text, {"w": (3, 4), "s": (4,)})
    done = applied(model, edits)
    assert [n.op_type for n in done.graph.node] == ["Mul", "Add", "MatMul", "PRelu"]
    x = feeds(model)["x"]
    weights = {t.name: np.frombuffer(t.raw_data, np.float32) for t in model.graph.initializer}
    b = (2 * x + 1) @ weights["w"].reshape(3, 4)
    np.testing.assert_allclose(
        run(done, {"x": x})["y"], np.where(b < 0, 0.5 * b, b), rtol=1e-4, atol=1e-5
    )


def test_a_constant_that_others_read_is_set_for_one_operator_alone():
    def edits(graph):
        return GraphEdits(constants=(NewConstant(graph.producer("a"), 1, lambda: np.eye(3)),))

    text = "(float[N,3] x) => (float[N,3] y) { a = MatMul(x, w) y = MatMul(a, w) }"
    model = build(text, {"w": (3, 3)})
    done = applied(model, edits)
    x = feeds(model)["x"]
    w = np.frombuffer(model.graph.initializer[0].raw_data, np.float32).reshape(3, 3)
    np.testing.assert_allclose(run(done, {"x": x})["y"], x @ w, rtol=1e-5, atol=1e-6)


def test_plans_read_as_text():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      d = Dropout(c)
      n = BN(d, m)
      r = Tanh(n)
      o = BN(r, k)
      y = Sigmoid(o)
    }"""
    model = build(text, {"w": (4, 3, 3, 3), "b": (4,), "m": Norm(4), "k": Norm(4)})
    folded = str(fold_model(model, plan_only=True).plan)
    lines = [line.split() for line in folded.splitlines()]
    assert ["n", "BatchNormalization", "backward", "c"] in lines
    assert "backward: Tanh 'r'" in " ".join(folded.split())
    assert any("stays" in line for line in lines)
    inserted = insert_model(model, PRESERVE, plan_only=True).plan
    assert "already normalised" in str(inserted)
    assert {e.kind for e in inserted.entries} == {"Tanh", "Sigmoid"}
    stripped = strip_model(model, StripOptions(("dropout",))).plan
    assert "1 layer taken out, 0 Dropouts reduced" in str(stripped)
    assert [e.node for e in stripped.entries] == ["d"]
    assert str(strip_model(model, StripOptions(("lrn",))).plan) == "nothing to strip"
