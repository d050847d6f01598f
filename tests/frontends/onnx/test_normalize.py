"""ONNX models of every age, read into one vocabulary."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnpass.errors import InputError
from bnpass.frontends.onnx.read import read
from tests.helpers import Norm, build


def graph(text, weights=None, **options):
    return read(build(text, weights, **options)).main.graph


def only(g, kind):
    (op,) = [op for op in g.ops_in_order if op.kind == kind]
    return op


def ints(g, op, index):
    return [int(v) for v in np.atleast_1d(g.constant(op.input(index)).small)]


@pytest.mark.parametrize(
    ("opset", "node", "weights"),
    [(9, "Slice <starts = [1], ends = [3], axes = [2]> (x)", {}),
     (13, "Slice(x, s, e, a)", {"s": [1], "e": [3], "a": [2]})],
)  # fmt: skip
def test_slices_hold_their_numbers_in_inputs(opset, node, weights):
    g = graph(f"(float[N,3,8,8] x) => (float[] y) {{ y = {node} }}", weights, opset=opset, ir=7)
    op = only(g, "Slice")
    assert [ints(g, op, i) for i in (1, 2, 3)] == [[1], [3], [2]]


@pytest.mark.parametrize("kind", ["Squeeze", "Unsqueeze"])
@pytest.mark.parametrize("opset", [11, 13])
def test_shapes_are_known_whatever_the_opset(kind, opset):
    node = f"{kind} <axes = [1]> (x)" if opset < 13 else f"{kind}(x, a)"
    weights = {} if opset < 13 else {"a": [1]}
    text = f"(float[2,1,3] x) => (float[] y) {{ y = {node} }}"
    g = graph(text, weights, opset=opset, ir=7)
    assert g.shape("y") == ((2, 3) if kind == "Squeeze" else (2, 1, 1, 3))


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_reductions_hold_their_axes_in_an_input(opset):
    for kind, since in (("ReduceMean", 18), ("ReduceSum", 13), ("ReduceMax", 18)):
        old = opset < since
        node = f"{kind} <axes = [2]> (x)" if old else f"{kind}(x, a)"
        text = f"(float[N,3,8] x) => (float[] y) {{ y = {node} }}"
        g = graph(text, {} if old else {"a": [2]}, opset=opset, ir=7)
        assert ints(g, only(g, kind), 1) == [2]


def test_pad_and_clip_of_old_opsets():
    text = """(float[N,3,8,8] x) => (float[] y) {
      p = Pad <pads = [0,0,1,1,0,0,1,1], value = 2.0> (x)
      y = Clip <min = 0.0, max = 6.0> (p)
    }"""
    g = graph(text, opset=9, ir=4)
    assert ints(g, only(g, "Pad"), 1) == [0, 0, 1, 1, 0, 0, 1, 1]
    assert float(g.constant(only(g, "Pad").input(2)).small) == 2.0
    assert [float(g.constant(only(g, "Clip").input(i)).small) for i in (1, 2)] == [0, 6]


@pytest.mark.parametrize(
    ("pad", "kernel", "more", "wanted"),
    [("VALID", 3, "", []), ("SAME_UPPER", 1, ", strides = [2,2]", []),
     ("SAME_UPPER", 3, "", [1, 1, 1, 1]), ("SAME_UPPER", 2, "", [0, 0, 1, 1]),
     ("SAME_LOWER", 2, "", [1, 1, 0, 0]), ("SAME_LOWER", 4, "", [2, 2, 1, 1]),
     ("SAME_UPPER", 4, ", dilations = [1,2]", [1, 3, 2, 3]),
     ("SAME_UPPER", 3, ", strides = [2,2]", None)],
)  # fmt: skip
def test_auto_pad_is_resolved_or_unknown(pad, kernel, more, wanted):
    text = f"""(float[N,3,8,8] x) => (float[] y) {{
      y = Conv <auto_pad = "{pad}"{more}> (x, w)
    }}"""
    op = only(graph(text, {"w": (4, 3, kernel, kernel)}), "Conv")
    assert "auto_pad" not in op.attrs and op.attrs["pads"] == wanted


def test_flags_of_training():
    text = """(float[N,3] x) => (float[] y, float[] z) {
      y, m, v = BatchNormalization <training_mode = 1> (x, n_g, n_b, n_m, n_v)
      z = Dropout(y, half, yes)
    }"""
    weights = {"n": Norm(3), "half": 0.5, "yes": np.array(True)}
    g = graph(text, weights)
    assert only(g, "BatchNormalization").attrs["training"] is True
    assert only(g, "Dropout").attrs["training"] is True


def test_epsilon_is_the_float32_that_a_runtime_sees():
    text = "(float[N,3] x) => (float[] y) { y = BN(x, n) }"
    op = only(graph(text, {"n": Norm(3)}), "BatchNormalization")
    assert op.attrs["epsilon"] == float(np.float32(1e-5))


def test_operators_of_other_domains_keep_their_name():
    text = "(float[N,3] x) => (float[N,3] y) { y = acme.Magic(x) }"
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>\ng ' + text
    )
    assert [op.kind for op in read(model).main.graph.ops_in_order] == ["acme::Magic"]


def test_old_opsets_are_refused_with_a_hint():
    model = build("(float[N,3] x) => (float[] y) { y = Relu(x) }", opset=7, ir=3)
    model.opset_import[0].version = 5
    with pytest.raises(InputError, match="opset 5") as caught:
        read(model)
    assert "convert_version" in caught.value.hint


# --- constants


def test_constants_are_found_through_operators():
    text = """(float[N,3] x) => (float[] y) {
      s = Shape(k)
      z = ConstantOfShape <value = float[1] {2.0}> (s)
      t = Transpose <perm = [1,0]> (z)
      c = Constant <value_float = 3.0> ()
      m = Mul(t, c)
      y = MatMul(x, m)
    }"""
    g = graph(text, {"k": (4, 3)})
    assert [op.kind for op in g.ops_in_order] == ["MatMul"]
    np.testing.assert_array_equal(g.constant("m").small, np.full((3, 4), 6.0))


def test_random_numbers_and_quantised_weights_are_no_constants():
    text = """(float[N,3] x) => (float[] y, float[] z) {
      r = RandomNormal <shape = [3]> ()
      y = Add(x, r)
      q = QuantizeLinear(k, s)
      w = DequantizeLinear(q, s)
      z = Add(x, w)
    }"""
    g = graph(text, {"k": (3,), "s": 0.1})
    assert g.constant("r") is None and g.constant("w") is None


@pytest.mark.parametrize(("ir", "frozen", "constant"), [(3, False, True), (8, False, False),
                                                        (8, True, True)])  # fmt: skip
def test_initializers_that_are_inputs(ir, frozen, constant):
    model = build("(float[N,3] x) => (float[] y) { y = Add(x, k) }", {"k": (3,)}, opset=8, ir=ir)
    if ir > 3:
        model.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [3]))
    g = read(model, freeze_inputs=frozen).main.graph
    assert (g.constant("k") is not None) == constant
    assert ("k" in g.pinned) == (not constant) and g.inputs == ["x"] + ["k"] * (not constant)


# --- shapes and bodies


def test_symbols_and_unknown_sizes():
    text = "(float[N,3,H,?] x) => (float[] y) { y = Relu(x) }".replace("?", "W")
    model = build(text)
    model.graph.input[0].type.tensor_type.shape.dim[3].Clear()
    g = read(model).main.graph
    assert g.shape("y")[:3] == ("N", 3, "H")
    assert not isinstance(g.shape("x")[3], int)


def test_a_body_is_a_scope_that_sees_the_constants_around_it():
    text = """(float[N,3] x, bool q) => (float[N,3] y) {
      y = If (q) <
        then_branch = one () => (float[N,3] t) { t = Add(x, k) },
        else_branch = two () => (float[N,3] e) { e = Sub(x, k) }
      >
    }"""
    reading = read(build(text, {"k": (3,)}))
    assert len(reading.scopes) == 3
    main, *inner = reading.scopes
    assert set(only(main.graph, "If").captured) == {"x", "k"}
    for scope in inner:
        assert scope.outer is main and scope.graph.constant("k") is not None
        assert scope.graph.shape("x") == ("N", 3)


def test_nodes_without_names_are_named_after_their_outputs():
    text = """(float[N,3] x) => (float[] y) {
      h = Relu(x)
      [mine] y = Tanh(h)
    }"""
    assert list(graph(text).ops) == ["h", "mine"]


def test_weights_are_read_only_when_asked_for():
    model = build("(float[N,3] x) => (float[] y) { y = MatMul(x, w) }", {"w": (3, 4)})
    tensor = model.graph.initializer[0]
    wanted = numpy_helper.to_array(tensor).copy()
    g = read(model).main.graph
    assert g.constant("w").shape == (3, 4) and g.constant("w").dtype == "float32"
    np.testing.assert_array_equal(g.constant("w").float64(), wanted.astype(np.float64))


@pytest.mark.parametrize(("opset", "ir"), [(8, 3), (21, 10)])
def test_shapes_and_axes_behind_an_identity_are_seen(opset, ir):
    model = build("(float[2,3,4] x) => (float[] y) { y = Reshape(x, s) }", {"s": [6, 4]},
                  opset=opset, ir=ir)  # fmt: skip
    model.graph.node.insert(0, helper.make_node("Identity", ["s"], ["same"]))
    model.graph.node[1].input[1] = "same"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert read(model).main.graph.shape("y") == (6, 4)
