"""The walk of a map: long ones, and ones that have to go back to an earlier choice."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

import bnpass
from tests.helpers import assert_folds, assert_same, assert_stays, build, positive


def test_more_sums_on_the_way_than_the_stack_of_python_is_deep():
    rng, count = np.random.default_rng(0), 1100
    arrays = {f"w{i}": rng.normal(size=(4, 4, 1, 1)) / 20 for i in range(count + 1)}
    arrays |= {"g": rng.normal(size=4), "b": rng.normal(size=4), "m": rng.normal(size=4)}
    arrays["v"] = np.ones(4)
    nodes = [helper.make_node("Conv", ["x", "w0"], ["s0"])]
    for i in range(1, count + 1):
        nodes.append(helper.make_node("Conv", ["x", f"w{i}"], [f"c{i}"]))
        nodes.append(helper.make_node("Add", [f"s{i - 1}", f"c{i}"], [f"s{i}"]))
    reads = [f"s{count}", "g", "b", "m", "v"]
    nodes.append(helper.make_node("BatchNormalization", reads, ["y"]))
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 4, 2, 2]) for name in "xy")
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "deep", [x], [y], tensors)
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    folded = bnpass.fold(model, verify=False)
    assert "BatchNormalization" not in {n.op_type for n in folded.graph.node}
    assert_same(model, folded)


SUMS = """(float[N,4,3,3] x) => (float[] y) {{
  t = Tanh(x)
  a = Conv(x, w)
  b = Conv(x, u)
  p = Add({first}, a)
  q = Add({second}, p)
  z = BN(q, n)
  y = Tanh(z)
}}"""


def test_a_choice_that_leads_nowhere_is_taken_back():
    """The shift may go to any operand; here a scale of 1 leaves one that takes it."""
    weights = {"w": (4, 4, 1, 1), "u": (4, 4, 1, 1)}
    one = {"n_g": np.ones(4, np.float32), "n_v": np.ones(4, np.float32)}
    shift = positive(4).arrays("n", np.random.default_rng(0)) | one
    for first, second in (("b", "t"), ("t", "b"), ("t", "t")):
        text = SUMS.format(first=first, second=second)
        spelt = "BatchNormalization <epsilon = 0.0> (q, n_g, n_b, n_m, n_v)"
        exact = text.replace("BN(q, n)", spelt)
        result = assert_folds(build(exact, {**weights, **shift}))
        assert result.count("Add") == 2
        assert_stays(build(text, {**weights, "n": positive(4)}), "Tanh 't'")
