"""Sums, products, max and min, rectifiers, identities and casts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import Norm, assert_folds, assert_stays, build, fold, half, positive

TWO = {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 3, 3, 3)}


def join(op, norm=None, shape="float[N,3,8,8]", **weights):
    """Two convolutions joined by an operator, then BN."""
    text = f"""({shape} x) => (float[] y) {{
      c = Conv(x, w, b)
      d = Conv(x, v)
      s = {op}
      y = BN(s, n)
    }}"""
    return build(text, {**TWO, "n": norm or Norm(4), **weights})


def after(op, norm=None, extra="", **weights):
    """Tanh, BN, an operator, then Conv without padding."""
    text = f"""(float[N,4,8,8] x{extra}) => (float[] y) {{
      r = Tanh(x)
      q = Sigmoid(x)
      a = BN(r, n)
      s = {op}
      y = Conv(s, w, b)
    }}"""
    return build(text, {"w": (5, 4, 3, 3), "b": (5,), "n": norm or Norm(4), **weights})


# --- Add, Sub, Sum, Mean of values


@pytest.mark.parametrize("op", ["Add(c, d)", "Sub(c, d)", "Sub(d, c)", "Sum(c, d)", "Sum(c, d, c)",
                                "Mean(c, d)", "Mean(c, d, d)", "Sum(c)"])  # fmt: skip
def test_sums_share_a_map_among_their_operands(op):
    result = assert_folds(join(op))
    assert result.count("Add", "Mul") == op.startswith("Add")


def test_residual_add_with_a_projection():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv <pads = [1,1,1,1]> (x, w, b)
      d = Conv(x, v)
      s = Add(c, d)
      y = BN(s, n)
    }"""
    assert_folds(build(text, {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 3, 1, 1), "n": Norm(4)}))


def test_residual_add_without_a_projection_stays():
    text = """(float[N,4,8,8] x) => (float[] y) {
      c = Conv <pads = [1,1,1,1]> (x, w, b)
      s = Add(c, x)
      y = BN(s, n)
    }"""
    model = build(text, {"w": (4, 4, 3, 3), "b": (4,), "n": Norm(4)})
    assert_stays(model, "'x' is an input of the graph")


def test_a_shift_alone_needs_one_operand_only():
    text = """(float[N,4,8,8] x) => (float[] y) {
      c = Conv <pads = [1,1,1,1]> (x, w, b)
      s = Add(x, c)
      y = Add(s, k)
    }"""
    result = assert_folds(build(text, {"w": (4, 4, 3, 3), "b": (4,), "k": (4, 1, 1)}))
    assert result.count("Add") == 1


def test_an_operand_with_one_channel_takes_a_uniform_scale_and_no_shift():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      d = Conv(x, v)
      s = Add(d, c)
      y = BN(s, n)
    }"""
    weights = {"w": (4, 3, 3, 3), "b": (4,), "v": (1, 3, 3, 3)}
    norm = Norm(4).arrays("n", np.random.default_rng(0))
    assert_stays(build(text, {**weights, **norm}), "'d' is broadcast along the channels")
    norm["n_g"], norm["n_v"] = np.full(4, -1.5, np.float32), np.full(4, 0.7, np.float32)
    assert_folds(build(text, {**weights, **norm}))


def test_x_plus_x():
    assert_folds(join("Add(c, c)"))


def test_sum_of_a_value_with_itself_thrice():
    assert_folds(join("Sum(c, c, c)"))


def test_add_of_a_value_and_its_dropout():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      d = Dropout(c)
      s = Add(c, d)
      y = BN(s, n)
    }"""
    assert_folds(build(text, {"w": (4, 3, 3, 3), "b": (4,), "n": Norm(4)}))


def test_diamond_of_two_depths():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      d = Identity(c)
      e = Add(c, d)
      f = Add(e, c)
      y = BN(f, n)
    }"""
    assert_folds(build(text, {"w": (4, 3, 3, 3), "b": (4,), "n": Norm(4)}))


def test_x_minus_x_asks_for_no_shift_that_arrives():
    assert_stays(join("Sub(c, c)"))


@pytest.mark.parametrize("op", ["Add(a, q)", "Add(q, a)", "Sub(a, q)", "Sub(q, a)", "Sum(q, a, q)",
                                "Mean(q, a, q)"])  # fmt: skip
def test_forward_a_shift_alone_passes_a_sum(op):
    norm = Norm(4).arrays("n", np.random.default_rng(0))
    norm["n_g"], norm["n_v"] = np.sqrt(np.float32([1, 2, 3, 4]) + 1e-5), np.float32([1, 2, 3, 4])
    result = after(op, k=(4, 1, 1))
    assert_stays(result, "'s'", "does not carry the same scale")
    text = f"""(float[N,4,8,8] x) => (float[] y) {{
      r = Tanh(x)
      q = Sigmoid(x)
      a = Add(r, k)
      s = {op}
      y = Conv(s, w, b)
    }}"""
    model = build(text, {"w": (5, 4, 3, 3), "b": (5,), "k": (4, 1, 1)})
    result = assert_folds(model)
    assert "k" not in result.weights()


@pytest.mark.parametrize(
    "op", ["Add(a, e)", "Sub(a, e)", "Sub(e, a)", "Sum(a, e, a)", "Mean(a, e)"]
)
def test_forward_one_map_passes_a_sum_on_all_of_its_operands(op):
    text = f"""(float[N,4,8,8] x) => (float[] y) {{
      r = Tanh(x)
      a = BN(r, n)
      e = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)
      s = {op}
      y = Conv(s, w, b)
    }}"""
    assert_folds(build(text, {"w": (5, 4, 3, 3), "b": (5,), "n": Norm(4)}))


@pytest.mark.parametrize("op", ["Add(a, e)", "Sub(e, a)", "Sum(a, e, a)", "Mean(a, e)"])
def test_forward_two_batch_norms_of_equal_scale_pass_a_sum_together(op):
    text = f"""(float[N,4,8,8] x) => (float[] y) {{
      r = Tanh(x)
      q = Sigmoid(x)
      a = BN(r, n)
      e = BN(q, m)
      s = {op}
      y = Conv(s, w, b)
    }}"""
    rng = np.random.default_rng(0)
    norms = {"n": Norm(4).arrays("n", rng), "m": Norm(4).arrays("m", rng)}
    arrays = {**norms["n"], **norms["m"]}
    arrays["m_g"], arrays["m_v"] = arrays["n_g"], arrays["n_v"]
    assert_folds(build(text, {"w": (5, 4, 3, 3), "b": (5,), **arrays}))


@pytest.mark.parametrize("between", ["BN(a, n)", "BN(f, n)"])
def test_a_batch_norm_that_reads_another_does_not_join_it(between):
    text = f"""(float[N,4,8,8] x) => (float[] y) {{
      r = Tanh(x)
      a = BN(r, n)
      f = AveragePool <kernel_shape = [1,1]> (a)
      e = {between}
      s = Add(a, e)
      t = Add(s, f)
      y = Conv(t, w)
    }}"""
    fold(build(text, {"w": (5, 4, 3, 3), "n": positive(4)}))


def test_forward_different_scales_stay():
    text = """(float[N,4,8,8] x) => (float[] y) {
      r = Tanh(x)
      q = Sigmoid(x)
      a = BN(r, n)
      e = BN(q, p)
      s = Add(a, e)
      y = Conv(s, w, b)
    }"""
    model = build(text, {"w": (5, 4, 3, 3), "b": (5,), "n": positive(4), "p": Norm(4)})
    assert_stays(model, "'s'", "does not carry the same scale")


# --- per-channel constants


@pytest.mark.parametrize(
    "op",
    ["Mul(c, k)", "Mul(k, c)", "Div(c, k)", "Add(c, k)", "Add(k, c)", "Sub(c, k)", "Sub(k, c)",
     "Neg(c)"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), ()])
def test_per_channel_arithmetic_is_a_map(op, shape):
    text = f"""(float[N,3,8,8] x) => (float[] y) {{
      c = Conv(x, w, b)
      s = {op}
      y = Relu(s)
    }}"""
    weights = {"w": (4, 3, 3, 3), "b": (4,)}
    if "k" in op:
        weights["k"] = shape
    result = assert_folds(build(text, weights))
    assert [n.op_type for n in result.after.graph.node] == ["Conv", "Relu"]


def test_constant_over_value_is_no_map():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      e = Exp(c)
      s = Div(k, e)
      y = BN(s, n)
    }"""
    model = build(text, {"w": (4, 3, 3, 3), "b": (4,), "k": (4, 1, 1), "n": Norm(4)})
    assert_stays(model)


def test_constant_over_value_passes_a_scale_to_its_constant():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      e = Exp(c)
      s = Div(k, e)
      y = BN(s, n)
    }"""
    weights = {"w": (4, 3, 3, 3), "b": (4,), "k": (4, 1, 1), "n": Norm(4, shift=False)}
    assert_folds(build(text, weights))


def test_a_scale_of_zero_does_not_go_into_a_divisor():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      e = Exp(x)
      g = Conv(e, u)
      s = Div(g, c)
      y = BN(s, n)
    }"""
    weights = {"w": (4, 3, 3, 3), "b": (4,), "u": (4, 3, 3, 3), "n": Norm(4, shift=False)}
    assert_folds(build(text, weights), 1e-4)


def test_a_constant_that_grows_the_value_is_no_map():
    text = """(float[N,1,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s = Mul(c, k)
      y = Relu(s)
    }"""
    model = build(text, {"w": (1, 1, 3, 3), "b": (1,), "k": (4, 1, 1)})
    result = assert_stays(model)
    assert result.count("Mul") == 1


def test_a_constant_along_the_last_axis_is_not_per_channel_of_an_image():
    text = """(float[N,3,8,6] x) => (float[] y) {
      c = Conv(x, w, b)
      s = Mul(c, k)
      y = Relu(s)
    }"""
    model = build(text, {"w": (4, 3, 3, 3), "b": (4,), "k": (4,)})
    result = assert_stays(model)
    assert result.count("Mul") == 1


def test_a_rank_1_constant_acts_on_the_last_axis():
    text = """(float[N,T,3] x) => (float[] y) {
      c = MatMul(x, w)
      m = Mul(c, k)
      s = Add(m, b)
      y = Relu(s)
    }"""
    result = assert_folds(build(text, {"w": (3, 4), "k": (4,), "b": (4,)}))
    assert result.count("Mul") == 0 and result.count("Add") == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_a_batch_norm_that_an_exporter_has_spelt_out(swapped):
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      eps = Constant <value = float {1e-5}> ()
      v1 = Add(var, eps)
      std = Sqrt(v1)
      d = Sub(c, mean)
      q = Div(d, std)
      m = Mul(q, g)
      y = Add(m, beta)
    }"""
    if swapped:
        text = text.replace("(q, g)", "(g, q)").replace("(m, beta)", "(beta, m)")
    rng = np.random.default_rng(1)
    weights = {k: rng.normal(size=(1, 4, 1, 1)).astype(np.float32) for k in ("mean", "g", "beta")}
    weights["var"] = rng.uniform(0.3, 2, (1, 4, 1, 1)).astype(np.float32)
    result = assert_folds(build(text, {"w": (4, 3, 3, 3), "b": (4,), **weights}))
    assert [n.op_type for n in result.after.graph.node] == ["Conv"]
    assert set(result.weights()) == {"w", "b"}


def test_a_spelt_out_batch_norm_that_stays_is_one_batch_norm():
    text = """(float[N,4,8,8] x) => (float[] y) {
      r = Tanh(x)
      d = Sub(r, mean)
      q = Div(d, std)
      m = Mul(q, g)
      a = Add(m, beta)
      y = Sigmoid(a)
    }"""
    weights = dict.fromkeys(("mean", "std", "g", "beta"), (4, 1, 1))
    result = assert_stays(build(text, weights), "'y'")
    assert [n.op_type for n in result.after.graph.node] == ["Tanh", "BatchNormalization", "Sigmoid"]
    plain = assert_stays(build(text, weights), leftover="affine")
    assert [n.op_type for n in plain.after.graph.node] == ["Tanh", "Mul", "Add", "Sigmoid"]


def test_batch_norm_mul_and_add_that_stay_are_one_batch_norm():
    text = """(float[N,4,8,8] x) => (float[] y) {
      r = Tanh(x)
      z = BN(r, n)
      m = Mul(z, g)
      a = Add(m, beta)
      y = Sigmoid(a)
    }"""
    model = build(text, {"g": (4, 1, 1), "beta": (4, 1, 1), "n": Norm(4)})
    result = assert_stays(model, "Sigmoid 'y'")
    assert [n.op_type for n in result.after.graph.node] == ["Tanh", "BatchNormalization", "Sigmoid"]


def test_batch_norm_behind_batch_norm():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w)
      d = BN(c, n)
      e = BN(d, p)
      y = Relu(e)
    }"""
    assert_folds(build(text, {"w": (4, 3, 3, 3), "n": Norm(4), "p": Norm(4)}))


def test_a_scale_of_zero_makes_a_constant_channel():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w)
      y = Mul(c, k)
    }"""
    model = build(text, {"w": (4, 3, 3, 3), "k": np.float32([0, 1, 0, 2]).reshape(4, 1, 1)})
    assert_folds(model)


def test_division_by_zero_is_no_map():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w)
      s = Mul(c, k)
      y = Relu(s)
    }"""
    weights = {"w": (4, 3, 3, 3), "k": np.float32([np.inf, 1, 0, 2]).reshape(4, 1, 1)}
    model = build(text, weights)
    import bnpass

    after_ = bnpass.fold(model, verify=False)
    assert [n.op_type for n in after_.graph.node] == ["Conv", "Mul", "Relu"]


# --- Mul, Div of two values


@pytest.mark.parametrize("op", ["Mul(c, d)", "Div(c, d)"])
def test_a_product_gives_the_scale_to_one_operand(op):
    assert_folds(join(op, Norm(4, shift=False)), 1e-4)


@pytest.mark.parametrize("op", ["Mul(c, d)", "Div(c, d)"])
def test_a_shift_does_not_pass_a_product(op):
    assert_stays(join(op), "'s'", "a shift cannot pass a product of two values", rtol=1e-3)


@pytest.mark.parametrize("op", ["Mul(a, q)", "Mul(q, a)", "Div(a, q)"])
def test_forward_a_scale_passes_a_product(op):
    assert_folds(after(op, Norm(4, shift=False)), 1e-4)
    assert_stays(after(op), "'s'", "a shift cannot pass a product", rtol=1e-4)


def test_forward_a_divisor_passes_scales_without_zero():
    assert_folds(after("Div(q, a)", positive(4, shift=False)), 1e-3)


# --- Max, Min


@pytest.mark.parametrize("op", ["Max(c, d)", "Min(c, d)", "Max(c, d, c)", "Min(d)"])
def test_max_and_min_take_positive_scales(op):
    assert_folds(join(op, Norm(4, "nonnegative")))
    assert_stays(join(op), "'s'", "a negative scale cannot pass it")


@pytest.mark.parametrize("op", ["Max(a, e)", "Min(a, e)"])
def test_forward_max_and_min_carry_one_map_together(op):
    text = f"""(float[N,4,8,8] x) => (float[] y) {{
      r = Tanh(x)
      a = BN(r, n)
      e = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)
      s = {op}
      y = Conv(s, w, b)
    }}"""
    assert_folds(build(text, {"w": (5, 4, 3, 3), "b": (5,), "n": Norm(4, "nonnegative")}))
    model = build(text, {"w": (5, 4, 3, 3), "b": (5,), "n": Norm(4)})
    assert_stays(model, "'s'", "a negative scale cannot pass it")
    assert_stays(after(op.replace("e", "q"), positive(4)), "'s'", "does not carry the same map")


@pytest.mark.parametrize("op", ["Max(a, zero)", "Min(six, a)"])
def test_forward_max_and_min_with_a_constant(op):
    weights = {"zero": 0.0, "six": 0.3}
    assert_folds(after(op, positive(4), **weights))
    assert_stays(after(op, Norm(4, "nonnegative"), **weights), "'s'", "a zero scale")


# --- rectifiers


@pytest.mark.parametrize("op", ["Relu(c)", "LeakyRelu(c)", "LeakyRelu <alpha = -0.5> (c)",
                                "PRelu(c, s)", "PRelu(c, t)"])  # fmt: skip
def test_rectifiers_take_positive_scales_without_shift(op):
    def model(norm):
        text = f"""(float[N,3,8,8] x) => (float[] y) {{
          c = Conv(x, w, b)
          r = {op}
          y = BN(r, n)
        }}"""
        weights = {"w": (4, 3, 3, 3), "b": (4,), "s": (1,), "t": (4, 1, 1), "n": norm}
        return build(text, {k: v for k, v in weights.items() if k in "wbn" or f" {k})" in op})

    assert_folds(model(Norm(4, "nonnegative", shift=False)))
    assert_stays(model(Norm(4, "nonnegative")), "'r'", "a shift cannot pass it")
    assert_stays(model(Norm(4, shift=False)), "'r'", "a negative scale cannot pass it")


def test_a_computed_slope_passes_no_map():
    text = """(float[N,3,8,8] x) => (float[] y) {
      r = Tanh(x)
      a = BN(r, n)
      p = PRelu(q, a)
      q = Sigmoid(x)
      y = Conv(p, w)
    }"""
    text = text.replace("      p = PRelu(q, a)\n      q = Sigmoid(x)\n",
                        "      q = Neg(r)\n      p = PRelu(q, a)\n")  # fmt: skip
    model = build(text, {"w": (4, 3, 3, 3), "n": positive(3, shift=False)})
    assert_stays(model, "'p'", "an input that is not its data")


@pytest.mark.parametrize("op", ["Relu(a)", "LeakyRelu(a)", "PRelu(a, t)"])
def test_forward_scales_pass_a_rectifier(op):
    weights = {"t": (4, 1, 1)} if "t)" in op else {}
    assert_folds(after(op, positive(4, shift=False), **weights))
    assert_stays(after(op, positive(4), **weights), "'s'", "a shift cannot pass it")


def test_pre_activation_splits_where_the_shift_can_go_back():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, v)
      p = MaxPool <kernel_shape = [2,2]> (c)
      a = BN(p, n)
      r = Relu(a)
      y = Conv <pads = [1,1,1,1]> (r, w)
    }"""
    model = build(text, {"v": (4, 3, 3, 3), "w": (2, 4, 3, 3), "n": positive(4)})
    assert_folds(model)
    text = text.replace("MaxPool <kernel_shape = [2,2]>", "Relu").replace(
        "a = BN(p, n)", "a = BN(q, n)"
    )
    text = text.replace("      a = BN", "      q = Add(x0, p)\n      a = BN")
    text = text.replace("(float[N,3,8,8] x)", "(float[N,3,8,8] x, float[N,4,6,6] x0)")
    weights = {"v": (4, 3, 3, 3), "w": (2, 4, 3, 3)}
    assert_stays(build(text, {**weights, "n": positive(4)}), "'r'", "a shift cannot pass it")


def test_pre_activation_whose_shift_has_a_place():
    """s*x + t = s*(x + t/s): the shift enters one operand of the Add, the scale the next Conv."""
    text = """(float[N,4,8,8] x) => (float[] y) {
      c = Conv <pads = [1,1,1,1]> (x, v)
      q = Add(x, c)
      a = BN(q, n)
      r = Relu(a)
      y = Conv <pads = [1,1,1,1]> (r, w)
    }"""
    weights = {"v": (4, 4, 3, 3), "w": (2, 4, 3, 3)}
    result = assert_folds(build(text, {**weights, "n": positive(4)}))
    assert result.plan.folded[0].how == "split"
    assert_stays(build(text, {**weights, "n": Norm(4)}), "'r'", "negative scale")
    assert_stays(build(text, {**weights, "n": Norm(4, "nonnegative")}))


# --- Identity, Dropout, Cast


@pytest.mark.parametrize(
    "op", ["Identity(c)", "Dropout(c)", "Dropout(c, ratio)", "Dropout(c, ratio, no)"]
)
def test_identities_pass_everything(op):
    weights = {"ratio": 0.5, "no": np.array(False)}
    text = f"""(float[N,3,8,8] x) => (float[] y) {{
      c = Conv(x, w, b)
      d = {op}
      y = BN(d, n)
    }}"""
    used = {k: v for k, v in weights.items() if k in op}
    assert_folds(build(text, {"w": (4, 3, 3, 3), "b": (4,), "n": Norm(4), **used}))
    used = {k: v for k, v in weights.items() if k in op}
    assert_folds(after(op.replace("(c", "(a"), **used))


def test_a_live_dropout_stops_a_map():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      d = Dropout(c, ratio, yes)
      y = BN(d, n)
    }"""
    weights = {"ratio": 0.0, "yes": np.array(True), "w": (4, 3, 3, 3), "b": (4,), "n": Norm(4)}
    assert_stays(build(text, weights), "'d'", "a Dropout in training mode")


def test_a_mask_that_is_read_stays_right():
    text = """(float[N,3,8,8] x) => (float[] y, bool[] k) {
      c = Conv(x, w, b)
      d, k = Dropout(c)
      y = BN(d, n)
    }"""
    assert_folds(build(text, {"w": (4, 3, 3, 3), "b": (4,), "n": Norm(4)}))


def test_a_cast_that_widens_passes():
    text = """(float16[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w)
      d = Cast <to = 1> (c)
      y = BN(d, n)
    }"""
    assert_folds(build(text, {"w": half(4, 3, 3, 3), "n": Norm(4)}), 5e-3)


def test_a_cast_that_narrows_stays():
    text = """(float[N,3,8,8] x) => (float16[] y) {
      c = Conv(x, w)
      d = Cast <to = 10> (c)
      y = BN(d, n)
    }"""
    assert_stays(build(text, {"w": (4, 3, 3, 3), "n": Norm(4)}), "'d'", "rounds", rtol=5e-3)


def test_a_cast_to_integers_stays():
    text = """(float[N,3,8,8] x) => (float[] y) {
      r = Tanh(x)
      a = BN(r, n)
      i = Cast <to = 7> (a)
      f = Cast <to = 1> (i)
      y = Conv(f, w)
    }"""
    assert_stays(build(text, {"w": (4, 3, 3, 3), "n": Norm(3)}), "'i'", "floating-point types")


# --- where several paths meet


def test_concat_of_a_value_with_itself():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s = Concat <axis = 1> (c, c)
      y = BN(s, n)
    }"""
    weights = {"w": (4, 3, 3, 3), "b": (4,)}
    assert_stays(build(text, {**weights, "n": Norm(8)}), "'c' need different maps")
    norm = Norm(4).arrays("n", np.random.default_rng(0))
    same = {k: np.concatenate([a, a]) for k, a in norm.items()}
    assert_folds(build(text, {**weights, **same}))


def test_a_value_read_at_two_places_of_a_sum():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      d = Conv(x, v)
      e = Add(c, d)
      f = Add(c, e)
      g = Sub(f, d)
      y = BN(g, n)
    }"""
    assert_folds(build(text, {**TWO, "n": Norm(4)}))


def test_a_reader_of_the_shape_alone_does_not_matter():
    text = """(float[N,3,8,8] x) => (float[] y, int64[] s) {
      c = Conv(x, w, b)
      s = Shape(c)
      y = BN(c, n)
    }"""
    assert_folds(build(text, {"w": (4, 3, 3, 3), "b": (4,), "n": Norm(4)}))
