"""Where a map ends: Conv, Gemm, MatMul, Einsum, tables, recurrent layers, normalisations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bnpass.frontends.onnx.folding import fold_model
from tests.helpers import (
    Norm,
    assert_equal_bytes,
    assert_folds,
    assert_stays,
    build,
    fold,
    half,
    run_reference,
)

IMAGE = "(float[N,6,9,9] x) => (float[] y)"


def conv(attrs="", out=4, group=1, kernel=(3, 3), bias=True, op="Conv"):
    """Conv or ConvTranspose, then BN."""
    inner = 6 // group
    shape = (out, inner, *kernel) if op == "Conv" else (6, out // group, *kernel)
    text = f"""{IMAGE} {{
      c = {op} <group = {group} {"," + attrs if attrs else ""}> (x, w{", b" if bias else ""})
      y = BN(c, n)
    }}"""
    return build(text, {"w": shape, "n": Norm(out), **({"b": (out,)} if bias else {})})


# --- Conv and ConvTranspose, backward


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "attrs",
    ["", "pads = [1,1,1,1]", 'auto_pad = "SAME_UPPER"', "strides = [2,2], dilations = [2,2]"],
)
def test_conv_takes_a_batch_norm_in(op, bias, attrs):
    result = assert_folds(conv(attrs, bias=bias, op=op))
    assert [n.op_type for n in result.after.graph.node] == [op]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize(("group", "out"), [(2, 4), (3, 6), (6, 6), (6, 12), (3, 3)])
def test_grouped_conv_takes_a_batch_norm_in(op, group, out):
    assert_folds(conv(group=group, out=out, op=op))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("dims", [1, 3])
def test_conv_of_one_and_three_dimensions(op, dims):
    text = f"""(float[N,3,{",".join("6" * dims)}] x) => (float[] y) {{
      c = {op}(x, w, b)
      y = BN(c, n)
    }}"""
    shape = ((4, 3) if op == "Conv" else (3, 4)) + (2,) * dims
    assert_folds(build(text, {"w": shape, "b": (4,), "n": Norm(4)}))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_transposed_conv_with_as_many_inputs_as_outputs(op):
    assert_folds(conv(out=6, op=op, kernel=(2, 3)))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_conv_with_an_empty_bias_name(op):
    text = f"""{IMAGE} {{
      c = {op}(x, w, "")
      y = BN(c, n)
    }}"""
    text = text.replace(', ""', "")
    model = build(text, {"w": (6, 6, 3, 3), "n": Norm(6)})
    model.graph.node[0].input.append("")
    assert_folds(model)


def test_dynamic_weight_stays():
    text = """(float[N,3,8,8] x, float[4,3,3,3] w) => (float[] y) {
      c = Conv(x, w)
      y = BN(c, n)
    }"""
    assert_stays(build(text, {"n": Norm(4)}), "'c'", "weight 'w' is no constant")


def test_dynamic_bias_stays():
    text = """(float[N,3,8,8] x, float[4] b) => (float[] y) {
      c = Conv(x, w, b)
      y = BN(c, n)
    }"""
    assert_stays(build(text, {"w": (4, 3, 3, 3), "n": Norm(4)}), "'c'", "weight 'b' is no constant")


def test_conv_that_others_read_stays():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w)
      y = BN(c, n)
      z = Sigmoid(c)
    }"""
    assert_stays(build(text, {"w": (4, 3, 3, 3), "n": Norm(4)}), "Sigmoid 'z'")


def test_conv_whose_result_is_an_output_stays():
    text = """(float[N,3,8,8] x) => (float[] c, float[] y) {
      c = Conv(x, w)
      y = BN(c, n)
    }"""
    assert_stays(build(text, {"w": (4, 3, 3, 3), "n": Norm(4)}), "'c' is an output of the graph")


# --- Conv and ConvTranspose, forward


def before_conv(attrs="", group=1, out=4, op="Conv", norm=None, kernel=(3, 3), bias=True):
    """Relu, BN, then Conv or ConvTranspose."""
    shape = (out, 6 // group, *kernel) if op == "Conv" else (6, out // group, *kernel)
    text = f"""{IMAGE} {{
      r = Sigmoid(x)
      a = BN(r, n)
      y = {op} <group = {group} {"," + attrs if attrs else ""}> (a, w{", b" if bias else ""})
    }}"""
    weights = {"w": shape, "n": norm or Norm(6), **({"b": (out,)} if bias else {})}
    return build(text, weights)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("group", "out"), [(1, 4), (2, 4), (6, 6), (6, 12)])
@pytest.mark.parametrize("attrs", ["", "strides = [2,2], dilations = [2,1]", 'auto_pad = "VALID"'])
def test_conv_without_padding_takes_the_batch_norm_in_front_in(group, out, attrs, bias):
    result = assert_folds(before_conv(attrs, group, out, bias=bias))
    assert result.plan.folded[0].how == "forward"


@pytest.mark.parametrize("attrs", ["pads = [0,1,0,0]", 'auto_pad = "SAME_UPPER"',
                                   'auto_pad = "SAME_LOWER"'])  # fmt: skip
def test_a_shift_does_not_pass_zero_padding(attrs):
    assert_stays(before_conv(attrs), "'y'", "a shift cannot pass its zero padding")


@pytest.mark.parametrize("attrs", ["pads = [1,1,1,1]", 'auto_pad = "SAME_UPPER"'])
@pytest.mark.parametrize("group", [1, 2])
def test_a_scale_alone_passes_zero_padding(attrs, group):
    assert_folds(before_conv(attrs, group, norm=Norm(6, shift=False)))


def test_auto_pad_same_with_a_kernel_of_one_pads_nothing():
    assert_folds(before_conv('auto_pad = "SAME_UPPER", strides = [2,2]', kernel=(1, 1)))


@pytest.mark.parametrize(("group", "out"), [(1, 4), (2, 4), (6, 12)])
def test_a_scale_passes_into_a_transposed_conv(group, out):
    norm = Norm(6, shift=False)
    assert_folds(before_conv("strides = [2,2]", group, out, "ConvTranspose", norm))


@pytest.mark.parametrize("attrs", ["pads = [2,2,2,2]", "pads = [2,3,3,2]",
                                   "dilations = [2,1], pads = [4,2,4,2]"])  # fmt: skip
def test_a_shift_passes_into_a_transposed_conv_without_borders(attrs):
    assert_folds(before_conv(attrs, op="ConvTranspose", group=2))


@pytest.mark.parametrize(
    "attrs",
    ["", "pads = [2,2,2,1]", "pads = [2,2,2,2], strides = [2,1]",
     "pads = [2,2,2,2], strides=[2,2], output_padding = [1,0]",
     "pads = [2,2,2,2], dilations = [2,1]", 'auto_pad = "SAME_UPPER"'],
)  # fmt: skip
def test_a_shift_does_not_pass_a_transposed_conv_with_borders(attrs):
    model = before_conv(attrs, op="ConvTranspose")
    assert_stays(model, "'y'", "a shift cannot pass a transposed convolution with borders")


def test_output_shape_hides_the_padding_of_a_transposed_conv():
    model = before_conv("output_shape = [7,7]", op="ConvTranspose")
    assert_stays(model, "a shift cannot pass")


def test_several_consumers_take_a_map_in_together():
    text = """(float[N,3,9,9] x) => (float[] y, float[] z) {
      r = Tanh(x)
      a = BN(r, n)
      y = Conv(a, w, b)
      z = Conv <strides = [2,2]> (a, v)
    }"""
    assert_folds(build(text, {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 3, 1, 1), "n": Norm(3)}))


def test_one_consumer_that_refuses_stops_all():
    text = """(float[N,3,9,9] x) => (float[] y, float[] z) {
      r = Tanh(x)
      a = BN(r, n)
      y = Conv(a, w, b)
      z = Conv <pads = [1,1,1,1]> (a, w, b)
    }"""
    assert_stays(build(text, {"w": (4, 3, 3, 3), "b": (4,), "n": Norm(3)}), "'z'")


# --- Gemm


def gemm(attrs="", c=None, trans_b=False, trans_a=False, opset=21):
    """Gemm then BN, C of any shape."""
    x = "float[7,5]" if trans_a else "float[5,7]"
    text = f"""({x} x) => (float[] y) {{
      h = Gemm <transA = {int(trans_a)}, transB = {int(trans_b)} {"," + attrs if attrs else ""}>
        (x, w{", c" if c is not None else ""})
      y = BN(h, n)
    }}"""
    weights = {"w": (4, 7) if trans_b else (7, 4), "n": Norm(4)}
    if c is not None:
        weights["c"] = c
    return build(text, weights, opset=opset)


@pytest.mark.parametrize("trans_b", [True, False])
@pytest.mark.parametrize("attrs", ["", "alpha = 0.5", "alpha = 2.0, beta = 0.25", "beta = 0.0"])
@pytest.mark.parametrize("c", [None, (4,), (1, 4), (5, 4), (5, 1), (1,), (1, 1), ()])
def test_gemm_takes_a_batch_norm_in(trans_b, attrs, c):
    result = assert_folds(gemm(attrs, c, trans_b))
    assert [n.op_type for n in result.after.graph.node] == ["Gemm"]


def test_gemm_with_a_transposed_input():
    assert_folds(gemm(trans_a=True, c=(4,)))


def test_gemm_of_opset_9_requires_its_bias():
    assert_folds(gemm(c=(4,), opset=9))


def test_gemm_with_a_dynamic_bias_stays():
    text = """(float[N,7] x, float[4] c) => (float[] y) {
      h = Gemm(x, w, c)
      y = BN(h, n)
    }"""
    assert_stays(build(text, {"w": (7, 4), "n": Norm(4)}), "'h'", "'c' is no constant")


@pytest.mark.parametrize("trans_b", [True, False])
@pytest.mark.parametrize("attrs", ["", "alpha = 0.5", "alpha = 2.0, beta = 0.25", "beta = 0.0"])
@pytest.mark.parametrize("c", [None, (4,), (5, 4), (5, 1), ()])
def test_gemm_takes_the_batch_norm_in_front_in(trans_b, attrs, c):
    text = f"""(float[5,7] x) => (float[] y) {{
      r = Sigmoid(x)
      a = BN(r, n)
      y = Gemm <transB = {int(trans_b)} {"," + attrs if attrs else ""}>
        (a, w{", c" if c is not None else ""})
    }}"""
    weights = {"w": (4, 7) if trans_b else (7, 4), "n": Norm(7)}
    if c is not None:
        weights["c"] = c
    assert_folds(build(text, weights))


def test_gemm_with_a_transposed_input_sums_the_batch():
    text = """(float[5,7] x) => (float[] y) {
      r = Sigmoid(x)
      a = BN(r, n)
      y = Gemm <transA = 1> (a, w)
    }"""
    model = build(text, {"w": (5, 4), "n": Norm(7)})
    assert_stays(model, "a shift cannot pass along the rows")


def test_a_constant_on_the_left_of_gemm_takes_its_rows():
    text = """(float[7,5] x) => (float[] y) {
      h = Gemm(w, x)
      t = Transpose(h)
      y = BN(t, n)
    }"""
    model = build(text, {"w": (4, 7), "n": Norm(4, shift=False)})
    assert_folds(model)


# --- MatMul, Einsum


def test_matmul_costs_one_add_for_a_shift():
    text = """(float[N,7] x) => (float[] y) {
      h = MatMul(x, w)
      y = BN(h, n)
    }"""
    result = assert_folds(build(text, {"w": (7, 4), "n": Norm(4)}))
    assert [n.op_type for n in result.after.graph.node] == ["MatMul", "Add"]


@pytest.mark.parametrize("order", ["h, b", "b, h"])
def test_matmul_and_add_in_either_order(order):
    text = f"""(float[N,7] x) => (float[] y) {{
      h = MatMul(x, w)
      a = Add({order})
      y = BN(a, n)
    }}"""
    result = assert_folds(build(text, {"w": (7, 4), "b": (4,), "n": Norm(4)}))
    assert [n.op_type for n in result.after.graph.node] == ["MatMul", "Add"]


@pytest.mark.parametrize("shape", [(4, 7), (2, 4, 7), (1, 4, 7), (2, 3, 4, 7)])
def test_a_constant_on_the_left_of_matmul(shape):
    """Its rows are the last axis but one."""
    text = """(float[2,3,7,5] x) => (float[] y) {
      h = MatMul(w, x)
      t = Transpose <perm = [0,2,1,3]> (h)
      y = BN(t, n)
    }"""
    if len(shape) == 3:
        shape = (3 if shape[0] == 2 else 1, *shape[1:])
    assert_folds(build(text, {"w": shape, "n": Norm(4)}))


def test_rank_3_linear_normalised_over_its_features():
    text = """(float[N,T,7] x) => (float[] y) {
      h = MatMul(x, w)
      a = Add(b, h)
      t = Transpose <perm = [0,2,1]> (a)
      z = BN(t, n)
      y = Transpose <perm = [0,2,1]> (z)
    }"""
    result = assert_folds(build(text, {"w": (7, 4), "b": (4,), "n": Norm(4)}))
    assert result.count("MatMul", "Add") == 2


def test_rank_3_linear_normalised_over_its_rows_stays():
    text = """(float[N,4,7] x) => (float[] y) {
      h = MatMul(x, w)
      y = BN(h, n)
    }"""
    model = build(text, {"w": (7, 4), "n": Norm(4)})
    assert_stays(model, "'h'", "a shift cannot pass along the rows")


def test_a_scale_alone_passes_along_the_rows():
    text = """(float[N,3,7] x) => (float[] y) {
      c = Conv(x, k)
      h = MatMul(c, w)
      y = BN(h, n)
    }"""
    model = build(text, {"k": (4, 3, 1), "w": (7, 4), "n": Norm(4, shift=False)})
    assert_folds(model)


def test_a_scale_along_the_rows_of_a_product_that_has_taken_a_shift_in():
    """Only BN's own axis is the product's; what BN adds must be multiplied as well."""
    text = """(float[2,5,3] x) => (float[] y) {
      t = Tanh(x)
      m = Mul(t, k)
      h = MatMul(w, m)
      z = BN(h, n)
      s = Mul(z, j)
      y = Tanh(s)
    }"""
    weights = {"w": (4, 5), "k": (3,), "j": (3,), "n": Norm(4)}
    assert fold(build(text, weights)).count("BatchNormalization") == 0
    text = """(float[2,1,3] x) => (float[] y) {
      t = Tanh(x)
      m = Mul(t, k)
      z = BN(m, n)
      h = MatMul(w, z)
      y = MatMul(h, v)
    }"""
    weights = {"w": (4, 1), "k": (3,), "v": (3, 2), "n": Norm(1)}
    assert fold(build(text, weights)).count("BatchNormalization") == 0
    text = """(float[3,1] x) => (float[] y) {
      t = Tanh(x)
      m = Mul(t, k)
      z = BN(m, n)
      h = Gemm(z, w)
      y = Gemm <transA = 1> (h, v)
    }"""
    weights = {"w": (1, 4), "k": (3, 1), "v": (3, 2), "n": Norm(1)}
    assert fold(build(text, weights)).count("BatchNormalization") == 0

def test_matmul_takes_the_batch_norm_in_front_in():
    text = """(float[N,7] x) => (float[] y) {
      r = Tanh(x)
      a = BN(r, n)
      y = MatMul(a, w)
    }"""
    assert_folds(build(text, {"w": (7, 4), "n": Norm(7)}))


def test_batched_weights_take_a_map_in_along_batch_and_columns():
    text = """(float[N,3,2,7] x) => (float[] y) {
      h = MatMul(x, w)
      y = BN(h, n)
    }"""
    assert_folds(build(text, {"w": (3, 7, 4), "n": Norm(3)}))


def test_one_weight_for_a_whole_batch_refuses_a_map_along_it():
    text = """(float[N,3,2,7] x) => (float[] y) {
      h = MatMul(x, w)
      y = BN(h, n)
    }"""
    assert_stays(build(text, {"w": (1, 7, 4), "n": Norm(3)}), "'h'")


def test_matmul_of_vectors():
    text = """(float[N,4,7] x) => (float[] y) {
      h = MatMul(x, w)
      y = BN(h, n)
    }"""
    assert_stays(build(text, {"w": (7,), "n": Norm(4)}), "'h'")


def test_matmul_of_two_values_stays():
    text = """(float[N,7] x, float[7,4] w) => (float[] y) {
      h = MatMul(x, w)
      y = BN(h, n)
    }"""
    assert_stays(build(text, {"n": Norm(4)}), "'h'", "no constant operand")


@pytest.mark.parametrize(
    ("equation", "x", "w", "channels"),
    [("nk,kc->nc", "N,7", (7, 4), 4), ("nk,ck->nc", "N,7", (4, 7), 4),
     ("nkl,lkc->nc", "N,3,7", (7, 3, 4), 4), ("nhwk,kc->nchw", "N,5,5,7", (7, 4), 4),
     ("nck,ck->nc", "N,4,7", (4, 7), 4)],
)  # fmt: skip
def test_einsum_takes_a_batch_norm_in(equation, x, w, channels):
    text = f"""(float[{x}] x) => (float[] y) {{
      h = Einsum <equation = "{equation}"> (x, w)
      y = BN(h, n)
    }}"""
    assert_folds(build(text, {"w": w, "n": Norm(channels)}))


@pytest.mark.parametrize(
    ("equation", "x", "w", "channels"),
    [("nk,kc->nc", "N,7", (7, 4), 7), ("nkl,lkc->nc", "N,3,7", (7, 3, 4), 3),
     ("nkhw,kc->nchw", "N,7,5,5", (7, 4), 7), ("nck,ck->nc", "N,4,7", (4, 7), 4)],
)  # fmt: skip
def test_einsum_takes_the_batch_norm_in_front_in(equation, x, w, channels):
    text = f"""(float[{x}] x) => (float[] y) {{
      r = Tanh(x)
      a = BN(r, n)
      y = Einsum <equation = "{equation}"> (a, w)
    }}"""
    assert_folds(build(text, {"w": w, "n": Norm(channels)}))


def test_einsum_along_rows_of_the_other_operand_stays():
    text = """(float[N,4,7] x) => (float[] y) {
      h = Einsum <equation = "nmk,kc->nmc"> (x, w)
      y = BN(h, n)
    }"""
    assert_stays(build(text, {"w": (7, 5), "n": Norm(4)}), "'h'")


def test_einsum_that_sums_an_axis_the_constant_lacks():
    text = """(float[N,3,7] x) => (float[] y) {
      r = Tanh(x)
      a = BN(r, n)
      y = Einsum <equation = "nkt,kc->nc"> (a, w)
    }"""
    assert_stays(build(text, {"w": (3, 4), "n": Norm(3)}), "'y'")


@pytest.mark.parametrize("shape", [(2, 3), (1, 3)])
def test_einsum_that_stretches_a_summed_axis_of_its_constant(shape):
    text = """(float[2,3] x) => (float[] y) {
      t = Tanh(x)
      a = BN(t, n)
      y = Einsum <equation = "ab,ab->b"> (a, w)
    }"""
    model = build(text, {"w": shape, "n": Norm(3)})
    if shape[0] == 2:
        assert_folds(model)
    else:
        assert_stays(model, "sums an axis")
    assert fold(build(text, {"w": shape, "n": Norm(3, shift=False)})).count("Einsum") == 1


def test_einsum_with_a_diagonal_stays():
    text = """(float[4,4] x) => (float[] y) {
      h = Einsum <equation = "kk,kc->kc"> (x, w)
      y = BN(h, n)
    }"""
    assert_stays(build(text, {"w": (4, 5), "n": Norm(5)}), "takes a diagonal")


# --- tables, recurrent layers


def test_a_gather_table_takes_a_batch_norm_in():
    text = """(int64[N,T] i) => (float[] y) {
      e = Gather(w, i)
      t = Transpose <perm = [0,2,1]> (e)
      y = BN(t, n)
    }"""
    assert_folds(build(text, {"w": (5, 4), "n": Norm(4)}))


def test_a_map_along_the_indices_of_a_table_stays():
    text = """(int64[N,4] i) => (float[] y) {
      e = Gather(w, i)
      y = BN(e, n)
    }"""
    assert_stays(build(text, {"w": (5, 3), "n": Norm(4)}), "varies along its indices")


@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_layers_take_the_batch_norm_in_front_in(op, directions, bias):
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[op] * 4
    direction = "bidirectional" if directions == 2 else "forward"
    text = f"""(float[N,5,6] x) => (float[] y) {{
      r = Tanh(x)
      t = Transpose <perm = [0,2,1]> (r)
      a = BN(t, n)
      s = Transpose <perm = [2,0,1]> (a)
      y = {op} <hidden_size = 4, direction = "{direction}"> (s, w, u{", b" if bias else ""})
    }}"""
    text = text.replace("float[N,5,6] x", "float[N,5,3] x")
    weights = {"w": (directions, gates, 3), "u": (directions, gates, 4), "n": Norm(3)}
    if bias:
        weights["b"] = (directions, 2 * gates)
    assert_folds(build(text, weights))


@pytest.mark.parametrize("after", [0, 1])
def test_gru_whose_reset_comes_first(after):
    text = f"""(float[T,N,3] x) => (float[] y) {{
      r = Tanh(x)
      t = Transpose <perm = [0,2,1]> (r)
      a = BN(t, n)
      s = Transpose <perm = [0,2,1]> (a)
      y = GRU <hidden_size = 4, linear_before_reset = {after}> (s, w, u, b)
    }}"""
    assert_folds(build(text, {"w": (1, 12, 3), "u": (1, 12, 4), "b": (1, 24), "n": Norm(3)}))


def test_nothing_passes_a_recurrent_layer_backward():
    text = """(float[T,N,3] x) => (float[] z) {
      y, h = RNN <hidden_size = 4> (x, w, u)
      s = Squeeze(h, zero)
      z = BN(s, n)
    }"""
    weights = {"w": (1, 4, 3), "u": (1, 4, 4), "zero": [0], "n": Norm(4)}
    assert_stays(build(text, weights), "RNN")


# --- normalisations


@pytest.mark.parametrize(
    ("norm", "weights"),
    [("InstanceNormalization(x, s, b)", {"s": (4,), "b": (4,)}),
     ("GroupNormalization <num_groups = 2> (x, s, b)", {"s": (4,), "b": (4,)}),
     ("LayerNormalization <axis = 1> (x, s, b)", {"s": (4, 3, 3), "b": (4, 3, 3)}),
     ("LayerNormalization <axis = 1> (x, s)", {"s": (4, 3, 3)}),
     ("LayerNormalization <axis = 1> (x, s, b)", {"s": (4, 1, 1), "b": (4, 3, 3)}),
     ("LayerNormalization <axis = 1> (x, s)", {"s": (4, 1, 1)})],
)  # fmt: skip
def test_normalisations_take_a_batch_norm_in(norm, weights):
    text = f"""(float[N,4,3,3] x) => (float[N,4,3,3] y) <float[N,4,3,3] h> {{
      h = {norm}
      y = BN(h, n)
    }}"""
    assert_folds(build(text, {**weights, "n": Norm(4)}))


def test_layer_norm_refuses_an_axis_that_it_does_not_normalise():
    text = """(float[N,4,3] x) => (float[] y) {
      h = LayerNormalization(x, s, b)
      y = BN(h, n)
    }"""
    model = build(text, {"s": (3,), "b": (3,), "n": Norm(4)})
    assert_stays(model, "'h'", "an axis that it does not normalise")


def test_group_norm_of_opset_18_has_one_scale_per_group():
    text = """(float[N,4,3,3] x) => (float[N,4,3,3] y) <float[N,4,3,3] h> {
      h = GroupNormalization <num_groups = 2> (x, s, b)
      y = BN(h, n)
    }"""
    model = build(text, {"s": (4,), "b": (4,), "n": Norm(4)})
    model.opset_import[0].version = 18  # deprecated there, so the checker would refuse it
    for tensor in model.graph.initializer[:2]:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(2, np.float32), tensor.name))
    result = fold_model(model)
    assert "one per group" in result.plan.refused[0].reason
    assert_equal_bytes(result.model, model)


def test_nothing_passes_a_normalisation_forward():
    text = """(float[N,4,3,3] x) => (float[] y) {
      r = Tanh(x)
      a = BN(r, n)
      h = InstanceNormalization(a, s, b)
      y = Conv(h, w)
    }"""
    weights = {"s": (4,), "b": (4,), "w": (3, 4, 1, 1), "n": Norm(4)}
    assert_stays(build(text, weights), "'h'", "statistics of its input")


# --- types


@pytest.mark.parametrize("stats", [np.float16, np.float32])
def test_half_precision_with_statistics_of_either_type(stats):
    text = """(float16[N,3,8,8] x) => (float16[] y) {
      c = Conv(x, w, b)
      y = BN(c, n)
    }"""
    weights = {"w": half(4, 3, 3, 3), "b": half(4), "n": Norm(4, dtype=stats)}
    result = assert_folds(build(text, weights), 5e-3)
    assert {a.dtype for a in result.weights().values()} == {np.dtype(np.float16)}


def test_weights_that_would_overflow_stay():
    """s is 4e5, beyond float16; the value that it scales is 1e-3 small, so that it may be right."""
    text = """(float16[N,3,8,8] x) => (float16[] y) {
      c = Conv(x, w)
      y = BN(c, n)
    }"""
    norm = {"n_g": [4e5, 1, 2, 1], "n_b": [0] * 4, "n_m": [0] * 4, "n_v": [1] * 4}
    weights = {k: np.array(v, np.float32) for k, v in norm.items()}
    weights["w"] = half(4, 3, 3, 3) * np.float16(1e-3)
    fits = assert_folds(build(text, weights), 2e-2)
    assert abs(fits.weights()["w"]).max() > 100
    weights["w"][0, 0, 0, 0] = 1.0
    model = build(text, weights)
    result = fold_model(model)
    assert_equal_bytes(result.model, model)
    (entry,) = result.plan.refused
    assert "would not be finite" in entry.reason and "'c'" in entry.reason


def test_bfloat16():
    import ml_dtypes

    text = """(bfloat16[N,7] x) => (bfloat16[] y) {
      h = Gemm(x, w, c)
      y = BN(h, n)
    }"""
    weights = {"w": half(7, 4, dtype=ml_dtypes.bfloat16), "c": half(4, dtype=ml_dtypes.bfloat16)}
    norm = Norm(4, dtype=ml_dtypes.bfloat16)
    assert_folds(build(text, {**weights, "n": norm}), 0.1, engine=run_reference)


def bfloat16_pair(group):
    """Two convolutions of one form, which are rewritten together."""
    import ml_dtypes

    text = f"""(bfloat16[N,4,3,3] x) => (bfloat16[] y) {{
      c = Conv <group = {group}> (x, w, b)
      z = BN(c, n)
      d = Conv <group = {group}> (z, u, e)
      y = BN(d, m)
    }}"""
    norms = {name: Norm(4, dtype=ml_dtypes.bfloat16) for name in "nm"}
    kernels = {name: half(4, 4 // group, 1, 1, dtype=ml_dtypes.bfloat16) for name in "wu"}
    biases = {name: half(4, dtype=ml_dtypes.bfloat16) for name in "be"}
    return build(text, {**kernels, **biases, **norms}, opset=22)


@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_in_bfloat16(group):
    assert_folds(bfloat16_pair(group), 0.1, engine=run_reference)


def test_double_precision():
    text = """(double[N,7] x) => (double[] y) {
      h = Gemm(x, w, c)
      y = BN(h, n)
    }"""
    weights = {"w": half(7, 4, dtype=float), "c": half(4, dtype=float), "n": Norm(4, dtype=float)}
    assert_folds(build(text, weights), 1e-13)


@pytest.mark.parametrize("computed", ["mean", "var"])
def test_a_map_does_not_enter_a_batch_norm_whose_statistics_are_computed(computed: str) -> None:
    """They are other numbers in every run, which no map changes once and for all."""
    names = {"mean": "mean", "var": "var"} | {computed: "z"}
    text = f"""(float[N,4,8,8] x, float[4] z) => (float[] y) {{
      m = Mul(x, k)
      y = BatchNormalization(m, scale, bias, {names["mean"]}, {names["var"]})
    }}"""
    weights = {"k": np.full((4, 1, 1), 3.0, np.float32), "scale": (4,), "bias": (4,), "mean": (4,),
               "var": np.ones(4, np.float32)}  # fmt: skip
    model = build(text, {n: w for n, w in weights.items() if n != computed})
    assert fold_model(model).model == model
