"""Folding whole models: peers' traps, sharing, names, and what must stay untouched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnpass
from bnpass.errors import InputError, UsageError
from tests.helpers import (
    Norm,
    assert_equal_bytes,
    assert_folds,
    assert_same,
    assert_stays,
    build,
    fold,
    positive,
    run,
    run_reference,
)

W = {"w": (4, 3, 3, 3), "b": (4,)}
CONV = """(float[N,3,8,8] x) => (float[] y) {
  c = Conv(x, w, b)
  y = BN(c, n)
}"""


# --- sharing


def test_a_bias_that_another_operator_reads_stays_for_it():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      y = BN(c, n)
      z = Conv(x, v, b)
    }"""
    model = build(text, {**W, "v": (4, 3, 3, 3), "n": Norm(4)})
    result = assert_folds(model)
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(result.weights()["b"], before["b"])


def test_two_convs_that_share_a_weight():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      d = Conv <strides = [2,2]> (x, w, b)
      y = BN(c, n)
      z = BN(d, m)
    }"""
    assert_folds(build(text, {**W, "n": Norm(4), "m": Norm(4)}))
    one = build(text.replace("BN(d, m)", "Relu(d)"), {**W, "n": Norm(4)})
    assert_folds(one)


def test_one_weight_and_bias_used_twice_by_one_operator():
    text = """(float[N,4] x) => (float[] y) {
      c = Gemm(x, w, w)
      y = BN(c, n)
    }""".replace("float[N,4] x", "float[4,4] x")
    assert_folds(build(text, {"w": (4, 4), "n": Norm(4)}))


def test_two_batch_norms_that_share_parameters():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      d = Conv(x, v)
      y = BN(c, n)
      r = BN(d, n)
      z = Relu(r)
    }"""
    result = assert_folds(build(text, {**W, "v": (4, 3, 3, 3), "n": Norm(4)}))
    assert set(result.weights()) >= {"w", "b", "v"}
    assert not any(name.startswith("n_") for name in result.weights())


def test_a_batch_norm_whose_parameters_are_one_tensor():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      y = BatchNormalization(c, p, p, p, p)
    }"""
    assert_folds(build(text, {**W, "p": np.float32([0.5, 1, 1.5, 2])}))


def test_growth_is_bounded():
    layers = "".join(
        f"""r{i} = Tanh({f"y{i - 1}" if i else "x"})
          c{i} = Conv <pads = [1,1,1,1]> (r{i}, w)
          y{i} = BN(c{i}, n{i})
        """
        for i in range(5)
    )
    norms = {f"n{i}": Norm(160) for i in range(5)}
    model = build(
        f"(float[N,160,8,8] x) => (float[] y4) {{ {layers} }}",
        {"w": np.ones((160, 160, 3, 3), np.float32), **norms},
    )
    some = bnpass.fold(model, plan_only=True, max_growth=2.0)
    assert 0 < len(some.refused) < 5
    assert all("--max-growth" in entry.reason for entry in some.refused)
    grown = bnpass.fold(model, verify=False, max_growth=6.0)
    assert grown.ByteSize() > 4 * model.ByteSize()


# --- names


def test_a_name_that_is_taken_is_left_alone():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      [layer] c = Conv(x, w)
      y = BN(c, n)
      z = Mul(x, other)
    }"""
    model = build(text, {"w": (4, 3, 3, 3), "n": Norm(4), "other": (8,)})
    taken = ["layer.bias", "w_bias", "layer.bias_1", "c_bias", "w_folded"]
    for name in taken:
        model.graph.initializer.append(numpy_helper.from_array(np.float32([3.0]), name))
    model.graph.node[2].input[1] = "layer.bias"
    result = assert_folds(model)
    for name in taken:
        np.testing.assert_array_equal(result.weights()[name], np.float32([3.0]))


def test_a_name_that_only_a_value_info_has_is_not_taken():
    text = "(float[N,6] x) => (float[] y) {\n h = MatMul(x, w)\n y = BN(h, n)\n}"
    model = build(text, {"w": (6, 4), "n": Norm(4)})
    model.graph.value_info.append(helper.make_tensor_value_info("h.bias", 7, [3]))
    assert_folds(model)

def test_nodes_without_names_and_nodes_with_equal_names():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      [same] c = Conv(x, w, b)
      [same] y = BN(c, n)
      [same] d = Conv(x, v)
      [same] z = BN(d, n)
    }"""
    model = build(text, {**W, "v": (4, 3, 3, 3), "n": Norm(4)})
    assert_folds(model, engine=run_reference)  # onnxruntime refuses equal names


def test_outputs_keep_their_names_and_places():
    text = """(float[N,3,8,8] x) => (float[] z, float[] y) {
      c = Conv(x, w, b)
      y = BN(c, n)
      d = Relu(y)
      z = Sigmoid(d)
    }"""
    result = assert_folds(build(text, {**W, "n": Norm(4)}))
    assert [o.name for o in result.after.graph.output] == ["z", "y"]


def test_a_batch_norm_between_an_input_and_an_output_stays():
    text = """(float[N,3,8,8] x) => (float[] y) {
      y = BN(x, n)
    }"""
    assert_stays(build(text, {"n": Norm(3)}), "'x' is an input of the graph")


def test_an_identity_map_between_an_input_and_an_output_leaves_an_identity():
    text = """(float[N,3,8,8] x) => (float[] y) {
      y = Mul(x, one)
    }"""
    result = fold(build(text, {"one": 1.0}))
    assert [n.op_type for n in result.after.graph.node] in (["Identity"], ["Mul"])


def test_two_outputs_that_one_value_would_have_to_carry():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      y = Mul(c, one)
      z = Mul(y, one)
    }"""
    result = fold(build(text, {**W, "one": 1.0}))
    assert [o.name for o in result.after.graph.output] == ["y", "z"]


# --- what is no map


def test_training_mode_is_refused_by_default():
    text = CONV.replace("y = BN(c, n)", "y = BatchNormalization <training_mode = 1> "
                        "(c, n_g, n_b, n_m, n_v)")  # fmt: skip
    text = text.replace("y = B", "y, rm, rv = B")
    model = build(text, {**W, "n": Norm(4)})
    result = assert_stays(model, "'y'", "training_mode=1")
    assert_equal_bytes(result.after, model)
    meant = bnpass.fold(model, verify=False, training_mode="inference")
    assert [n.op_type for n in meant.graph.node] == ["Conv"]
    assert_same(build(CONV, {**W, "n": Norm(4)}), meant)


def test_more_than_one_output_means_training_before_opset_14():
    text = CONV.replace("y = BN", "y, rm, rv, sm, sv = BN")
    model = build(text, {**W, "n": Norm(4)}, opset=9, ir=4)
    after = bnpass.fold(model, verify=False)
    assert_equal_bytes(after, model)


def test_training_statistics_that_something_reads_keep_their_batch_norm():
    text = """(float[N,3,8,8] x) => (float[] y, float[] m) {
      c = Conv(x, w, b)
      y, m, v = BatchNormalization <training_mode = 1> (c, n_g, n_b, n_m, n_v)
    }"""
    model = build(text, {**W, "n": Norm(4)})
    assert_stays(model, "batch statistics", "which are read", training_mode="inference")
    unread = build(text.replace(", float[] m)", ")"), {**W, "n": Norm(4)})
    folded = bnpass.fold(unread, training_mode="inference", verify=False)
    assert [n.op_type for n in folded.graph.node] == ["Conv"]
    text = text.replace("m) {", "u) {").replace("    }", "      u = Neg(m)\n    }")
    inside = build(text, {**W, "n": Norm(4)})
    assert_stays(inside, "which are read", training_mode="inference")

def test_statistics_that_are_no_numbers_stay():
    arrays = Norm(4).arrays("n", np.random.default_rng(0))
    arrays["n_v"][1] = -1.0
    model = build(CONV, {**W, **arrays})
    plan = bnpass.fold(model, plan_only=True)
    assert "negative" in plan.refused[0].reason
    assert_equal_bytes(bnpass.fold(model, verify=False), model)


def test_parameters_that_are_computed_stay():
    text = """(float[N,3,8,8] x, float[4] n_g) => (float[] y) {
      c = Conv(x, w, b)
      y = BatchNormalization(c, n_g, n_b, n_m, n_v)
    }"""
    arrays = Norm(4).arrays("n", np.random.default_rng(0))
    del arrays["n_g"]
    assert_stays(build(text, {**W, **arrays}), "'y'", "'n_g' is no constant")


# --- initializers that are inputs


def test_initializers_are_constants_at_ir_3():
    model = build(CONV, {**W, "n": Norm(4)}, opset=8, ir=3)
    result = assert_folds(model)
    listed = {i.name for i in result.after.graph.input}
    assert listed == {"x", "w", "b"} == {"x", *result.weights()}


def test_new_initializers_are_listed_at_ir_3():
    text = CONV.replace(", b)", ")")
    model = build(text, {"w": (4, 3, 3, 3), "n": Norm(4)}, opset=8, ir=3)
    result = assert_folds(model)
    assert {i.name for i in result.after.graph.input} == {"x", *result.weights()}


@pytest.mark.parametrize("name", ["w", "b", "n_g", "n_v"])
def test_defaults_that_callers_may_override_stay(name):
    model = build(CONV, {**W, "n": Norm(4)}, ir=8, opset=15)
    shape = [4, 3, 3, 3] if name == "w" else [4]
    info = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    model.graph.input.append(info)
    result = assert_stays(model)
    assert_equal_bytes(result.after, model)
    assert name in result.reasons
    frozen = assert_folds(model, freeze_inputs=True)
    assert frozen.count("Conv") == 1


def test_a_frozen_default_that_a_fold_has_used_is_no_input_any_more():
    two = CONV.replace("y = BN(c, n)", "y = BN(c, n)\n  z = Conv(x, w)")
    for text in (CONV, two.replace("float[] y", "float[] y, float[] z")):
        model = build(text, {**W, "n": Norm(4)}, ir=8, opset=15)
        for name, shape in (("w", [4, 3, 3, 3]), ("n_g", [4])):
            model.graph.input.append(helper.make_tensor_value_info(name, 1, shape))
        frozen = assert_folds(model, freeze_inputs=True)
        assert [i.name for i in frozen.after.graph.input] == ["x"]

# --- constants in other places


@pytest.mark.parametrize("opset", [13, 21])
def test_parameters_in_every_form_of_a_constant_node(opset):
    text = """(float[N,3,8,8] x) => (float[] y) {
      u = Constant <value_floats = [1.0, -2.0, 0.5]> ()
      w = Reshape(u, form)
      b = Constant <value = float[1] {1.5}> ()
      m = Constant <value_floats = [-0.25]> ()
      one = Constant <value_float = 1.25> ()
      axes = Constant <value_ints = [0]> ()
      g = Unsqueeze(one, axes)
      c = Conv(x, w, b)
      y = BatchNormalization(c, g, b, m, b)
    }"""
    result = assert_folds(build(text, {"form": [1, 3, 1, 1]}, opset=opset, ir=7))
    assert [n.op_type for n in result.after.graph.node] == ["Conv"]
    assert len(result.weights()) == 2


def test_weights_as_lists_of_floats_and_as_bytes():
    """Of one form otherwise, so that they are read and rewritten together."""
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      r = BN(c, n)
      t = Tanh(r)
      d = Conv(t, u, e)
      y = BN(d, m)
    }"""
    weights = {"w": (3, 3, 1, 1), "b": (3,), "u": (3, 3, 1, 1), "e": (3,)}
    model = build(text, {**weights, "n": Norm(3), "m": Norm(3)})
    for tensor in model.graph.initializer:
        if tensor.name in ("u", "b", "m_v", "n_g"):
            numbers = numpy_helper.to_array(tensor).ravel().tolist()
            tensor.CopyFrom(helper.make_tensor(tensor.name, 1, tensor.dims, numbers))
    assert_folds(model)


def test_weights_in_constant_nodes():
    text = """(float[N,3,8,8] x) => (float[] y) {
      w = ConstantOfShape <value = float[1] {0.5}> (shape)
      b = Constant <value = float[2] {1.0, -2.0}> ()
      c = Conv(x, w, b)
      y = BN(c, n)
    }"""
    result = assert_folds(build(text, {"shape": [2, 3, 3, 3], "n": Norm(2)}))
    assert [n.op_type for n in result.after.graph.node] == ["Conv"]
    assert "shape" not in result.weights()


@pytest.mark.parametrize(
    ("node", "shape"),
    [("Transpose <perm = [3,2,0,1]> (u)", (3, 3, 3, 4)), ("Identity(u)", (4, 3, 3, 3)),
     ("Transpose <perm = [3,2,1,0]> (u)", (3, 3, 3, 4)),
     ("Unsqueeze(u, three)", (4, 3, 3)), ("Reshape(u, full)", (108,)),
     ("Mul(u, two)", (4, 3, 3, 3)),
     ("Cast <to = 1> (u)", None)],
)  # fmt: skip
def test_weights_behind_operators(node, shape):
    text = f"""(float[N,3,8,8] x) => (float[] y, float[] z) {{
      w = {node}
      c = Conv(x, w)
      y = BN(c, n)
      z = Conv <strides = [2,2]> (x, w)
    }}"""
    weights = {"u": shape or np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float16)}
    weights |= {"three": [3], "full": [4, 3, 3, 3], "two": 2.0, "n": Norm(4)}
    used = {k: v for k, v in weights.items() if k in ("u", "n") or f" {k})" in node}
    assert_folds(build(text, used))
    alone = text.replace("z = Conv <strides = [2,2]> (x, w)", "z = Relu(x)")
    result = assert_folds(build(alone, used))
    assert [n.op_type for n in result.after.graph.node] == ["Conv", "Relu"]


def test_a_chain_that_yields_a_constant_only_after_folding_constants():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s = Shape(k)
      g = ConstantOfShape <value = float[1] {3.0}> (s)
      p = Pow(g, two)
      r = Reshape(p, wide)
      m = Mul(c, r)
      y = Relu(m)
    }"""
    weights = {**W, "k": (4,), "two": 2.0, "wide": [4, 1, 1]}
    result = assert_folds(build(text, weights))
    assert [n.op_type for n in result.after.graph.node] == ["Conv", "Relu"]
    assert set(result.weights()) == {"w", "b"}


# --- bodies and functions

IF = """(float[N,3,8,8] x, bool q) => (float[N,4,6,6] y) {{
  {outer}
  y = If (q) <
    then_branch = first () => (float[N,4,6,6] t) {{
      c = Conv({source}, w, b)
      t = BN(c, n)
    }},
    else_branch = second () => (float[N,4,6,6] e) {{
      d = Conv({source}, w, b)
      e = Relu(d)
    }}
  >
}}"""


def test_inside_the_branches_of_an_if():
    text = IF.format(outer="r = Relu(x)", source="r")
    for condition in (True, False):
        model = build(text, {**W, "n": Norm(4)})
        result = assert_folds(model)
        inputs = {"x": np.ones((2, 3, 8, 8), np.float32), "q": np.array(condition)}
        a, b = run(model, inputs)["y"], run(result.after, inputs)["y"]
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_value_that_a_branch_reads_refuses_a_map():
    text = IF.format(outer="r0 = Tanh(x)\n  r = BN(r0, m)", source="r")
    model = build(text, {**W, "n": Norm(4), "m": Norm(3)})
    result = fold(model)
    assert result.count("BatchNormalization") == 1
    assert "read inside the body" in result.reasons
    text = IF.format(outer="k = Conv(x, u)\n  r = BN(k, m)", source="k")
    text = text.replace("=> (float[N,4,6,6] y)", "=> (float[N,4,6,6] y, float[] r)")
    model = build(text, {**W, "n": Norm(4), "m": Norm(3), "u": (3, 3, 1, 1)})
    assert_stays(model, "also read by If")


def test_inside_a_loop():
    text = """(float[N,4,6,6] x, int64 m) => (float[N,4,6,6] y) {
      go = Constant <value = bool {1}> ()
      y = Loop (m, go, x) <
        body = step (int64 i, bool c, float[N,4,6,6] v) => (bool k, float[N,4,6,6] u) {
          k = Identity(c)
          h = Conv <pads = [1,1,1,1]> (v, w, b)
          z = BN(h, n)
          u = Tanh(z)
        }
      >
    }"""
    assert_folds(build(text, {"w": (4, 4, 3, 3), "b": (4,), "n": Norm(4)}))


def test_inside_a_scan():
    text = """(float[N,3] s, float[T,N,5] x) => (float[N,3] y, float[T,N,3] z) {
      y, z = Scan <num_scan_inputs = 1, body = step (float[N,3] a, float[N,5] v)
                   => (float[N,3] b, float[N,3] u) {
        h = MatMul(v, w)
        q = BN(h, n)
        b = Add(q, a)
        u = Tanh(b)
      }> (s, x)
    }"""
    result = assert_folds(build(text, {"w": (5, 3), "n": Norm(3)}))
    assert result.count("MatMul", "Add") == 3
    assert result.count("Scan") == 1


def test_a_local_function_is_inlined_where_it_holds_a_batch_norm():
    text = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[N,3,8,8] x) => (float[N,4,4,4] y)
    {
      h = local.block(x, w, g0, b0, m0, v0)
      y = local.block(h, u, g1, b1, m1, v1)
    }
    <opset_import: ["" : 21], domain: "local">
    block (x, w, g, b, m, v) => (y) {
      c = Conv(x, w)
      z = BatchNormalization(c, g, b, m, v)
      y = Relu(z)
    }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(4, 3, 3, 3)), "u": rng.normal(size=(4, 4, 3, 3))}
    for i in "01":
        arrays |= {f"g{i}": rng.normal(size=4), f"b{i}": rng.normal(size=4)}
        arrays |= {f"m{i}": rng.normal(size=4), f"v{i}": rng.uniform(0.5, 2, 4)}
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    result = assert_folds(model)
    assert [n.op_type for n in result.after.graph.node] == ["Conv", "Relu", "Conv", "Relu"]


# --- old and new spellings


@pytest.mark.parametrize("opset", [*range(7, 24), onnx.defs.onnx_opset_version()])
def test_every_opset_from_7_on(opset):
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      y0 = BN(c, n)
      p = AveragePool <kernel_shape = [2,2]> (y0)
      f = Flatten(p)
      y1 = Gemm(f, v, d)
      z = BN(y1, m)
      y = Sigmoid(z)
    }"""
    weights = {**W, "n": Norm(4), "v": (100, 5), "d": (5,), "m": Norm(5)}
    ir = 3 if opset < 9 else 7 if opset < 16 else 10
    model = build(text, weights, opset=opset, ir=ir)
    newest = opset > 23
    result = fold(model, engine=run_reference if newest else run)
    assert result.count("BatchNormalization") == 0


def test_spatial_of_the_old_batch_norm():
    text = CONV.replace("BN(c, n)", "BatchNormalization <spatial = 1> (c, n_g, n_b, n_m, n_v)")
    assert_folds(build(text, {**W, "n": Norm(4)}, opset=8, ir=3))


def test_below_opset_7_is_refused_with_a_hint():
    model = build(CONV, {**W, "n": Norm(4)}, opset=8, ir=3)
    model.opset_import[0].version = 6
    with pytest.raises(InputError) as caught:
        bnpass.fold(model, verify=False)
    assert "version_converter" in caught.value.hint


# --- untouched


def decorated():
    text = """(float[N,3,H,W] image, float[N,5] extra) => (float[] y, float[] z) {
      [first] c = Conv(image, w, b)
      [norm] s = BN(c, n)
      [act] y = Relu(s)
      [other] e = Gemm(extra, v)
      [last] z = Tanh(e)
    }"""
    model = build(text, {**W, "n": Norm(4), "v": (5, 2)})
    model.producer_name, model.producer_version = "someone", "1.2"
    model.domain, model.model_version, model.doc_string = "org.example", 7, "a model"
    model.metadata_props.add(key="classes", value="cat,dog")
    model.graph.doc_string = "a graph"
    for node in model.graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="where", value=node.name)
    for tensor in model.graph.initializer:
        tensor.doc_string = f"weights {tensor.name}"
    for name in ("c", "s", "e"):
        shape = ["N", 4, None, None] if name != "e" else ["N", 2]
        info = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        info.doc_string = f"value {name}"
        model.graph.value_info.append(info)
    return model


def test_what_a_fold_does_not_touch_keeps_every_byte():
    model = decorated()
    after = assert_folds(model).after
    kept = {n.name: n for n in after.graph.node}
    assert list(kept) == ["first", "act", "other", "last"]
    for node in model.graph.node:
        if node.name in ("other", "last"):
            assert kept[node.name].SerializeToString() == node.SerializeToString()
    first = kept["first"]
    assert list(first.input) == ["image", "w", "b"] and first.doc_string == "doc of first"
    assert first.metadata_props[0].value == "first"
    assert kept["act"].doc_string == "doc of act"
    for part in ("input", "output"):
        one, other = getattr(model.graph, part), getattr(after.graph, part)
        assert [v.SerializeToString() for v in one] == [v.SerializeToString() for v in other]
    tensors = {t.name: t for t in after.graph.initializer}
    assert set(tensors) == {"w", "b", "v"}
    assert tensors["v"].SerializeToString() == model.graph.initializer[-1].SerializeToString()
    assert tensors["w"].doc_string == "weights w"
    infos = {i.name: i for i in after.graph.value_info}
    assert "s" not in infos or "c" not in infos
    assert infos["e"].doc_string == "value e"
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string",
                  "ir_version"):  # fmt: skip
        assert getattr(after, field) == getattr(model, field)
    assert after.metadata_props[0].value == "cat,dog"
    assert after.opset_import == model.opset_import
    assert after.graph.doc_string == "a graph" and after.graph.name == model.graph.name


def test_a_model_without_maps_comes_back_byte_for_byte():
    text = """(float[N,3,8,8] x) => (float[] y) {
      dead = Identity(x)
      c = Conv(x, w, b)
      i = Identity(c)
      y = Relu(i)
    }"""
    model = build(text, {**W, "unused": (3,)})
    assert_equal_bytes(bnpass.fold(model, verify=False), model)


def test_only_and_skip():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      [bn_one] s = BN(c, n)
      r = Relu(s)
      d = Conv(r, v)
      [bn_two] y = BN(d, n)
    }"""
    model = build(text, {**W, "v": (4, 4, 3, 3), "n": Norm(4)})
    for options in ({"only": ("*_one",)}, {"skip": ("*_two",)}):
        after = bnpass.fold(model, verify=False, **options)
        assert [n.name for n in after.graph.node if n.op_type == "BatchNormalization"] == ["bn_two"]
        assert_same(model, after)


def test_inverse_reshapings_go_with_their_batch_norm():
    text = """(float[N,T,7] x) => (float[] y) {
      h = MatMul(x, w)
      a = Add(b, h)
      t = Transpose <perm = [0,2,1]> (a)
      z = BN(t, n)
      s = Transpose <perm = [0,2,1]> (z)
      y = Relu(s)
    }"""
    result = assert_folds(build(text, {"w": (7, 4), "b": (4,), "n": Norm(4)}))
    assert [n.op_type for n in result.after.graph.node] == ["MatMul", "Add", "Relu"]
    text = text.replace("y = Relu(s)", "y = Identity(s)").replace("s = T", "y = T")
    text = text.replace("      y = Identity(s)\n", "")
    result = assert_folds(build(text, {"w": (7, 4), "b": (4,), "n": Norm(4)}))
    assert [n.op_type for n in result.after.graph.node] == ["MatMul", "Add"]


def test_reshapings_around_inverse_ones_go_too():
    text = """(float[2,7,3,4] x) => (float[] y) {
      c = Conv(x, w)
      r = Relu(c)
      t = Transpose <perm = [0,2,3,1]> (r)
      f = Reshape(t, flat)
      z = Add(f, zero)
      g = Reshape(z, full)
      s = Transpose <perm = [0,3,1,2]> (g)
      y = Relu(s)
    }"""
    weights = {"w": (4, 7, 1, 1), "flat": [2, 12, 4], "full": [2, 3, 4, 4], "zero": 0.0}
    result = assert_folds(build(text, weights))
    assert [n.op_type for n in result.after.graph.node] == ["Conv", "Relu", "Relu"]


def test_an_unknown_size_written_as_minus_one():
    text = """(float[N,6] x) => (float[1,4] y) {
      h = MatMul(x, w)
      s = ReduceSum <keepdims = 1> (h, axis)
      y = BN(s, n)
    }"""
    model = build(text, {"w": (6, 4), "axis": [0], "n": Norm(4)})
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    folded = bnpass.fold(model, verify=False)
    inputs = {"x": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}
    np.testing.assert_allclose(run(folded, inputs)["y"], run(model, inputs)["y"], rtol=1e-4)

# --- the plan


def test_the_plan_says_what_became_of_every_batch_norm():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      [conv] c = Conv(x, w, b)
      [one] s = BN(c, n)
      r = Tanh(s)
      [two] t = BN(r, m)
      [next] y = Conv(t, v)
      [three] z = BN(x, p)
    }"""
    model = build(text, {**W, "v": (2, 4, 3, 3), "n": Norm(4), "m": Norm(4), "p": Norm(3)})
    plan = bnpass.fold(model, plan_only=True)
    found = {e.node: (e.how, e.into) for e in plan.entries}
    assert found["one"] == ("backward", ("conv",))
    assert found["two"] == ("forward", ("next",))
    assert found["three"] == ("", ())
    assert [e.node for e in plan.refused] == ["three"] and len(plan.folded) == 2
    listed = plan.to_dict()["folds"]
    assert {e["node"] for e in listed} == {"one", "two", "three"}
    assert next(e for e in listed if e["node"] == "three")["reason"]


def test_a_wrong_choice_is_a_usage_error():
    model = build(CONV, {**W, "n": Norm(4)})
    with pytest.raises(UsageError, match="leftover"):
        bnpass.fold(model, leftover="bm")


def test_the_default_verification_passes():
    model = build(CONV, {**W, "n": positive(4)})
    assert [n.op_type for n in bnpass.fold(model).graph.node] == ["Conv"]


def test_half_precision_with_tiny_variances_is_folded_in_double_precision():
    arrays = {
        "n_g": np.float16([1, 1, -1, 2]),
        "n_b": np.float16([0, 1, 0, 1]),
        "n_m": np.zeros(4, np.float16),
        "n_v": np.full(4, 6e-7, np.float16),
    }
    text = CONV.replace("float", "float16").replace(
        "BN(c, n)", "BatchNormalization <epsilon = 1e-7> (c, n_g, n_b, n_m, n_v)"
    )
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)) * 1e-3, "b": rng.normal(size=4) * 1e-3}
    model = build(text, {**{k: v.astype(np.float16) for k, v in weights.items()}, **arrays})
    assert_folds(model, 5e-3)


# --- what nobody reads


UNREAD = {
    "beside": "d = BN(c, m) e = BN(c, n)",
    "behind": "e = BN(c, n) d = BN(e, m)",
    "tree": "a = BN(c, o) d = BN(a, m) f = Mul(a, k) e = BN(c, n)",
    "between two of a chain": "g = Add(c, k) d = BN(g, m) e = BN(g, n)",
    "in front of a chain": "d = BN(c, m) f = BN(c, o) v = BN(c, n) e = Mul(v, k)",
}


@pytest.mark.parametrize("name", UNREAD)
def test_one_fold_is_enough_beside_what_nobody_reads(name):
    text = f"(float[N,3,8,8] x) => (float[] y) {{ c = Conv(x, w, b) {UNREAD[name]} y = Relu(e) }}"
    norms = {key: Norm(4) for key in "mno" if f", {key})" in text}
    numbers = {"k": np.full((1, 4, 1, 1), -0.7, np.float32)} if ", k)" in text else {}
    model = build(text, {**W, **norms, **numbers})
    result = assert_folds(model)
    assert [n.op_type for n in result.after.graph.node] == ["Conv", "Relu"]


def test_a_batch_norm_that_stays_takes_in_what_is_behind_it_past_one_that_nobody_reads():
    text = """(float[N,4,8,8] x) => (float[] y) {
      e = BN(x, n)
      d = BN(e, m)
      f = BN(e, o)
      y = Relu(f)
    }"""
    model = build(text, {"n": Norm(4), "m": Norm(4), "o": Norm(4)})
    result = fold(model)
    assert result.count("BatchNormalization") == 1
    assert_same(model, result.after, 1e-4)
