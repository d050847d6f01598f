"""Folding in nested bodies and local functions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnpass
from tests.helpers import Norm, assert_folds, assert_same, build, nodes

# --- bodies


def branch(name: str, seed: int) -> onnx.GraphProto:
    """A Conv and a BatchNormalization; every branch has the same names for its weights."""
    rng = np.random.default_rng(seed)
    arrays = {"w": rng.normal(size=(4, 3, 1, 1)), "c": rng.normal(size=4)}
    arrays |= {key: rng.normal(size=4) for key in ("g", "b", "m")}
    arrays["v"] = rng.uniform(0.5, 2, 4)
    made = [
        helper.make_node("Conv", ["x", "w", "c"], [f"{name}_conv"]),
        helper.make_node(
            "BatchNormalization", [f"{name}_conv", "g", "b", "m", "v"], [f"{name}_out"]
        ),
    ]
    output = helper.make_tensor_value_info(f"{name}_out", 1, ["N", 4, 3, 3])
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    return helper.make_graph(made, name, [], [output], tensors)


def test_weights_of_two_branches_with_the_same_names():
    node = helper.make_node(
        "If", ["q"], ["y"], then_branch=branch("yes", 1), else_branch=branch("no", 2)
    )
    inputs = [
        helper.make_tensor_value_info("q", onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", 1, ["N", 3, 3, 3]),
    ]
    outputs = [helper.make_tensor_value_info("y", 1, ["N", 4, 3, 3])]
    graph = helper.make_graph([node], "g", inputs, outputs)
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    result = assert_folds(model)
    for attribute in result.after.graph.node[0].attribute:
        assert [t.name for t in attribute.g.initializer] == ["w", "c"]
    for seed in range(4):  # draws both conditions
        assert_same(model, result.after, N=seed + 1)


def test_weights_around_a_body_go_when_only_the_body_has_read_them():
    text = """(float[N,3,4,4] x, bool q) => (float[N,3,4,4] y) {
      u = Identity(w)
      y = If (q) <
        then_branch = one () => (float[N,3,4,4] t) {
          c = Conv(x, u)
          t = BN(c, n)
        },
        else_branch = two () => (float[N,3,4,4] e) { e = Relu(x) }
      >
    }"""
    result = assert_folds(build(text, {"w": (3, 3, 1, 1), "n": Norm(3)}))
    assert [n.op_type for n in result.after.graph.node] == ["If"]
    assert not result.after.graph.initializer


# --- local functions


def with_functions(body: str, *functions: str, opset: int = 21) -> onnx.ModelProto:
    """A model on x (N, 3, 4, 4); its functions as ``name <attributes> (inputs) => (..) {..}``."""
    text = f"""<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[N,3,4,4] x) => (float[N,3,4,4] y) {{ {body} }}"""
    for function in functions:
        text += f"""
    <opset_import: ["" : {opset}, "local" : 1], domain: "local">
    {function}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=3) for name in "gbm"}
    arrays |= {"v": rng.uniform(0.5, 2, 3), "w": rng.normal(size=(3, 3, 1, 1))}
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


NORM = "norm (x, g, b, m, v) => (y) { y = BatchNormalization(x, g, b, m, v) }"
CONV = "conv (x, w) => (y) { y = Conv(x, w) }"


@pytest.mark.parametrize(
    ("body", "functions"),
    [
        ("h = local.conv(x, w) z = local.norm(h, g, b, m, v) y = Tanh(z)", (CONV, NORM)),
        ("h = local.conv(x, w) y = BatchNormalization(h, g, b, m, v)", (CONV,)),
        ("t = Tanh(x) z = BatchNormalization(t, g, b, m, v) y = local.conv(z, w)", (CONV,)),
        (
            "h = local.outer(x, w) y = BatchNormalization(h, g, b, m, v)",
            ("outer (x, w) => (y) { y = local.conv(x, w) }", CONV),
        ),
        (
            "u = local.turned(w) h = Conv(x, u) y = BatchNormalization(h, g, b, m, v)",
            ("turned (w) => (y) { y = Transpose <perm = [1,0,2,3]> (w) }",),
        ),
        (
            "h = Conv(x, w) y = local.norm <small = 0.5> (h, g, b, m, v)",
            (
                NORM.replace("norm", "norm <small>").replace(
                    "Normalization(", "Normalization <epsilon : float = @small> ("
                ),
            ),
        ),
    ],
)
def test_layers_in_functions_take_a_batch_norm_in(body, functions):
    result = assert_folds(with_functions(body, *functions))
    assert not any(n.domain == "local" for n in result.after.graph.node)


def test_functions_that_are_not_in_the_way_stay():
    body = """h = local.conv(x, w) z = BatchNormalization(h, g, b, m, v) t = Tanh(z)
              y = local.conv(t, w)"""
    result = assert_folds(with_functions(body.replace("y = local.conv", "y = local.c2"), CONV,
                                         CONV.replace("conv", "c2")))  # fmt: skip
    assert [n.op_type for n in result.after.graph.node] == ["Conv", "Tanh", "c2"]
    stays = with_functions("t = local.bend(x) y = BatchNormalization(t, g, b, m, v)",
                           "bend (x) => (y) { y = Tanh(x) }")  # fmt: skip
    after = bnpass.fold(stays, verify=False)
    assert after.SerializeToString() == stays.SerializeToString()


def test_a_batch_norm_in_a_body_of_a_function():
    function = """both (q, x, w, g, b, m, v) => (y) {
      h = Conv(x, w)
      y = If (q) <
        then_branch = one () => (float[N,3,4,4] t) { t = BatchNormalization(h, g, b, m, v) },
        else_branch = two () => (float[N,3,4,4] e) {
          k = Conv(h, w)
          e = BatchNormalization(k, g, b, m, v)
        }
      >
    }"""
    body = "q = Constant <value = bool {0}> () y = local.both(q, x, w, g, b, m, v)"
    model = with_functions(body, function)
    after = bnpass.fold(model, verify=False)
    onnx.checker.check_model(after, full_check=True)
    assert not after.functions
    kinds = [n.op_type for n in nodes(after.graph)]
    assert kinds.count("BatchNormalization") == 1  # the one that the If would have to take in
    assert_same(model, after)


def test_a_function_of_another_opset_whose_operators_are_the_same():
    body = "h = Conv(x, w) y = local.norm(h, g, b, m, v)"
    assert_folds(with_functions(body, NORM, opset=15))


def test_a_function_of_another_opset_stays_where_its_operators_are_others():
    model = with_functions("h = Conv(x, w) y = local.norm(h, g, b, m, v)", NORM)
    function = model.functions[0]  # Unsqueeze had its axes in an attribute then
    function.opset_import[0].version = 11
    function.node.insert(0, helper.make_node("Unsqueeze", ["x"], ["u"], axes=[0]))
    function.node.insert(1, helper.make_node("Squeeze", ["u"], ["s"], axes=[0]))
    function.node[2].input[0] = "s"
    after = bnpass.fold(model, verify=False)
    assert after.SerializeToString() == model.SerializeToString()
