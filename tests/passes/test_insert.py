"""Where BatchNorms go, where they do not, and which biases they make redundant."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnpass
from bnpass.errors import InputError, UsageError
from tests.helpers import Norm, assert_equal_bytes, assert_same, build, nodes
from tests.helpers_insert import insert

W = {"w": (4, 3, 3, 3), "b": (4,), "v": (2, 4, 3, 3), "d": (2,)}


def net(activation, weights=None, size="float[N,3,8,8]", opset=21, last="y = Conv(a, v, d)"):
    """Conv (c), some operators that make a, Conv."""
    text = f"""({size} x) => (float[] y) {{
      c = Conv(x, w, b)
      {activation}
      {last}
    }}"""
    used = {k: v for k, v in W.items() if k != "d" or "d)" in last}
    return build(text, {**used, **(weights or {})}, opset=opset, ir=10 if opset > 15 else 7)


# --- single operators

SINGLE = ["Relu(c)", "LeakyRelu(c)", "PRelu(c, s)", "Elu(c)", "Selu(c)", "Celu(c)", "Sigmoid(c)",
          "Tanh(c)", "HardSigmoid(c)", "HardSwish(c)", "Softplus(c)", "Softsign(c)", "Gelu(c)",
          "Mish(c)", "Clip(c, low, high)", "Clip(c)", "ThresholdedRelu(c)"]  # fmt: skip


@pytest.mark.parametrize("op", [*SINGLE, 'Gelu <approximate = "tanh"> (c)'])
def test_every_nonlinearity_gets_a_batch_norm(op):
    constants = {"s": (4, 1, 1), "low": 0.0, "high": 6.0}
    used = {k: v for k, v in constants.items() if f" {k}" in op}
    result = insert(net(f"a = {op}", used))
    assert result.sites == {"c": ("a",)}
    assert result.dropped == {"c"}
    assert result.kinds() == ["Conv", "BatchNormalization", op[: op.index("(")].split()[0], "Conv"]


@pytest.mark.parametrize("slope", [(4, 1, 1), (1,), (1, 4, 1, 1), (4, 6, 6)])
def test_prelu_with_any_slope(slope):
    assert insert(net("a = PRelu(c, s)", {"s": slope})).sites == {"c": ("a",)}


def test_swish_of_the_newest_opset():
    assert onnx.defs.onnx_opset_version() >= 24
    model = net("a = Swish(c)", opset=24)
    assert [s.value for s in bnpass.insert(model, plan_only=True).sites] == ["c"]


def test_softmax_is_none():
    model = net("a = Softmax <axis = 1> (c)")
    plan = bnpass.insert(model, plan_only=True)
    assert not plan.sites and plan.nonlinearities == 0
    assert_equal_bytes(bnpass.insert(model), model)


# --- composites

TANH_GELU = """k = Pow(c, t)
      l = Mul(k, u)
      m = Add(c, l)
      n = Mul(m, r)
      o = Tanh(n)
      p = Add(o, j)
      q = Mul(c, p)
      a = Mul(q, h)"""


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("s = Sigmoid(c)\n a = Mul(c, s)", {}),
        ("s = Sigmoid(c)\n a = Mul(s, c)", {}),
        ("k = Mul(c, h)\n s = Sigmoid(k)\n a = Mul(c, s)", {"h": 1.702}),
        ("s = HardSigmoid(c)\n a = Mul(c, s)", {}),
        ("p = Softplus(c)\n t = Tanh(p)\n a = Mul(c, t)", {}),
        ("q = Add(c, h)\n r = Clip(q, z, s)\n m = Mul(c, r)\n a = Div(m, s)",
         {"h": 3.0, "z": 0.0, "s": 6.0}),
        ("q = Div(c, r)\n e = Erf(q)\n p = Add(e, o)\n m = Mul(c, p)\n a = Mul(m, h)",
         {"r": 2.0**0.5, "o": 1.0, "h": 0.5}),
        ("q = Div(c, r)\n e = Erf(q)\n p = Add(e, o)\n m = Mul(c, h)\n a = Mul(m, p)",
         {"r": 2.0**0.5, "o": 1.0, "h": 0.5}),
        (TANH_GELU,
         {"t": 3.0, "u": 0.044715, "r": 0.7979, "j": 1.0, "h": 0.5}),
        ("m = Max(c, z)\n a = Min(m, s)", {"z": 0.0, "s": 6.0}),
        ("m = Min(c, s)\n a = Max(z, m)", {"z": 0.0, "s": 6.0}),
    ],
)  # fmt: skip
def test_composites_have_one_site_at_their_entry(text, constants):
    result = insert(net(text, constants))
    assert list(result.sites) == ["c"]
    assert result.plan.nonlinearities == 1
    assert result.kinds().count("BatchNormalization") == 1


def test_maxout_has_a_site_for_each_operand():
    text = "e = Conv(x, u)\n a = Max(c, e)"
    result = insert(net(text, {"u": (4, 3, 3, 3)}))
    assert set(result.sites) == {"c", "e"}


def test_squeeze_and_excite_is_no_composite():
    text = """r = Relu(c)
      p = GlobalAveragePool(r)
      f = Conv(p, u)
      g = Sigmoid(f)
      a = Mul(r, g)"""
    model = net(text, {"u": (4, 4, 1, 1)})
    result = insert(model)
    assert result.sites == {"c": ("r",)}
    assert "a gate" in result.reasons["g"]
    assert set(insert(model, gates=True).sites) == {"c", "f"}


def test_a_gated_linear_unit_is_a_gate():
    text = "p, q = Split <axis = 1> (c, two)\n g = Sigmoid(q)\n a = Mul(p, g)"
    model = net(text, {"two": [2, 2], "v": (2, 2, 3, 3)})
    assert "a gate" in insert(model).reasons["g"]
    result = insert(model, gates=True)
    assert not result.sites or result.plan.sites[0].absorbers == ("c",)


# --- which


def test_the_last_nonlinearity_is_off_by_default():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      r = Relu(c)
      f = Flatten(r)
      g = Gemm(f, v)
      y = Sigmoid(g)
    }"""
    model = build(text, {"w": (4, 3, 3, 3), "b": (4,), "v": (144, 5)})
    result = insert(model)
    assert result.sites == {"c": ("r",)} and "last nonlinearity" in result.reasons["y"]
    assert set(insert(model, last=True).sites) == {"c", "g"}


def test_only_skip_and_before():
    text = "[one] r = Relu(c)\n e = Conv(r, u)\n [two] a = Tanh(e)"
    model = net(text, {"u": (4, 4, 1, 1)})
    assert set(insert(model, only=("one",)).sites) == {"c"}
    assert set(insert(model, skip=("o*",)).sites) == {"e"}
    assert set(insert(model, before=("tanh",)).sites) == {"e"}
    assert set(insert(model, only=("Relu",)).sites) == {"c"}
    result = insert(model, before=("relu",))
    assert "type" in result.reasons["two"]


# --- where


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("p = MaxPool <kernel_shape = [2,2]> (c)\n a = Relu(p)", "c"),
        ("p = AveragePool <kernel_shape = [2,2]> (c)\n a = Relu(p)", "p"),
        ("p = Identity(c)\n a = Relu(p)", "p"),
        ("p = Dropout(c)\n a = Relu(p)", "c"),
        ("p = Pad(c, pads)\n a = Relu(p)", "c"),
        ("p = Tile(c, t)\n a = Relu(p)", "c"),
        ("p = Concat <axis = 1> (c, c)\n q = Slice(p, s, e, s)\n a = Relu(q)", "c"),
    ],
)  # fmt: skip
def test_the_latest_legal_place_but_in_front_of_copies(text, site):
    constants = {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "t": [1, 1, 2, 1], "s": [1], "e": [5]}
    used = {k: v for k, v in constants.items() if f" {k})" in text or f" {k}," in text}
    result = insert(net(text, used))
    assert list(result.sites) == [site]


@pytest.mark.parametrize(
    "order", ["m = Mul(c, k)\n p = Add(m, l)", "m = Add(c, l)\n p = Mul(m, k)"]
)
def test_per_channel_arithmetic_behind_a_layer_belongs_to_it(order):
    """Caffe's Scale: the BatchNorm stands behind all of it, and its constants are biases."""
    result = insert(net(f"{order}\n a = Relu(p)", {"k": (4, 1, 1), "l": (4, 1, 1)}))
    assert result.sites == {"p": ("a",)} and result.plan.sites[0].absorbers == ("c",)
    assert "c" in result.dropped and "Add" not in result.kinds()


def test_concat_of_two_layers_has_one_site():
    text = "e = Conv(x, u)\n p = Concat <axis = 1> (c, e)\n a = Relu(p)"
    result = insert(net(text, {"u": (2, 3, 3, 3), "v": (2, 6, 3, 3)}))
    assert result.sites == {"p": ("a",)}
    assert set(result.plan.sites[0].absorbers) == {"c", "e"}


SUMS = ["Add(c, e)", "Sub(c, e)", "Sum(c, e)", "Mean(c, e)"]


@pytest.mark.parametrize("op", SUMS)
def test_the_layers_of_a_sum_have_a_site_each(op):
    result = insert(net(f"e = Conv(x, u, b)\n p = {op}\n a = Relu(p)", {"u": (4, 3, 3, 3)}))
    assert result.sites == {"c": ("a",), "e": ("a",)}
    assert {site.branch_of for site in result.plan.sites} == {"p"}
    assert result.plan.per_branch == {"a"} and result.dropped == {"c", "e"}


@pytest.mark.parametrize("op", SUMS)
def test_one_site_on_the_sum_if_asked(op):
    model = net(f"e = Conv(x, u, b)\n p = {op}\n a = Relu(p)", {"u": (4, 3, 3, 3)})
    result = insert(model, sums="value")
    assert result.sites == {"p": ("a",)} and not result.plan.per_branch


@pytest.mark.parametrize(
    ("text", "sites"),
    [
        ("p = Sum(c, e, f)\n a = Relu(p)", {"c", "e", "f"}),
        ("q = Add(c, e)\n p = Add(q, f)\n a = Relu(p)", {"c", "e", "f"}),
        ("q = Add(c, e)\n p = GlobalAveragePool(q)\n a = Relu(p)", {"c", "e"}),
        ("q = Add(c, e)\n p = Concat <axis = 1> (q, f)\n a = Relu(p)", {"c", "e", "f"}),
        ("q = Add(c, c)\n a = Relu(q)", {"q"}),
        ("q = Dropout(c)\n p = Add(q, e)\n a = Relu(p)", {"c", "e"}),
        ("p = Add(c, k)\n a = Relu(p)", {"p"}),
    ],
)
def test_sums_under_and_behind_other_operators(text, sites):
    model = net(f"e = Conv(x, u)\n f = Conv(x, o)\n {text}",
                {"u": (4, 3, 3, 3), "o": (4, 3, 3, 3), "k": (4, 1, 1)},
                last="y = Identity(a)")  # fmt: skip
    assert set(insert(model, last=True).sites) == sites


def test_a_sum_with_a_normalised_branch_has_a_site_on_the_other():
    text = "e = Conv(x, u)\n g = BN(e, n)\n p = Add(c, g)\n a = Relu(p)"
    result = insert(net(text, {"u": (4, 3, 3, 3), "n": Norm(4)}))
    assert result.sites == {"c": ("a",)}


def test_a_recurrent_layers_contributions_share_one_site():
    text = """(float[T,N,3] x) => (float[] y) {
      i = MatMul(x, w)
      j = MatMul(x, v)
      k = Add(i, j)
      h = LSTM <hidden_size = 2> (k, o, r)
      y = Mul(h, t)
    }"""
    weights = {"w": (3, 8), "v": (3, 8), "o": np.eye(8, dtype=np.float32)[np.newaxis],
               "r": (1, 8, 2), "t": (2,)}  # fmt: skip
    result = insert(build(text, weights), last=True, foldable=False)
    assert set(result.sites) == {"k"}


BOTTLENECK = """r = Relu(c)
      e = Conv(r, u, b)
      f = Conv(e, o)
      a = Relu(f)"""


def test_linear_layers_have_a_site_if_asked():
    model = net(BOTTLENECK, {"u": (4, 4, 1, 1), "o": (4, 4, 1, 1)})
    assert insert(model).sites == {"c": ("r",), "f": ("a",)}
    result = insert(model, linear=True)
    assert result.sites == {"c": ("r",), "f": ("a",), "e": ()} and result.dropped == {"c", "e"}


def test_linear_layers_that_something_else_must_see_plain_have_none():
    text = """(float[N,3,8,8] x) => (float[] y, float[] e) {
      c = Conv(x, w, b)
      r = Relu(c)
      e = Conv(r, u)
      y = Conv(e, v)
    }"""
    weights = {"w": (4, 3, 3, 3), "b": (4,), "u": (4, 4, 1, 1), "v": (2, 4, 1, 1)}
    assert set(insert(build(text, weights), linear=True).sites) == {"c"}


def test_what_a_duplicated_layer_reads_stays_plain():
    text = """e = Conv(c, u, b)
      a = Tanh(e)
      f = Conv(e, o)
      g = Add(a, f)
      h = Relu(g)"""
    model = net(text, {"u": (4, 4, 1, 1), "o": (4, 4, 1, 1)}, last="y = Conv(h, v)")
    plan = bnpass.insert(model, linear=True, clone=True, plan_only=True)
    assert [site.value for site in plan.sites if site.clones] == ["e"]
    assert "c" not in {site.value for site in plan.sites}
    assert_same(model, bnpass.insert(model, linear=True, clone=True, init="preserve"))


RESIDUAL = """r = Relu(c)
      e = Conv <pads = [1,1,1,1]> (r, u)
      s = Relu(e)
      f = Conv <pads = [1,1,1,1]> (s, u)
      g = Conv(r, o)
      p = Add({left}, {right})
      a = Relu(p)"""


@pytest.mark.parametrize("operands", [("f", "g"), ("g", "f"), ("f", "r"), ("r", "f")])
def test_residual_branches_start_as_nothing_if_asked(operands):
    text = RESIDUAL.format(left=operands[0], right=operands[1])
    text = text if "g" in operands else text.replace("g = Conv(r, o)\n", "")
    weights = {"u": (4, 4, 3, 3), **({"o": (4, 4, 1, 1)} if "g" in operands else {})}
    model = net(text, weights)
    plan = bnpass.insert(model, zero_gamma=True, plan_only=True)
    assert [site.value for site in plan.sites if site.zero] == ["f"]
    after = bnpass.insert(model, zero_gamma=True)
    tensors = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    gammas = {n.input[0]: tensors[n.input[1]] for n in nodes(after.graph)
              if n.op_type == "BatchNormalization"}  # fmt: skip
    assert not gammas.pop("f").any() and all((g == 1).all() for g in gammas.values())


def test_zero_gamma_and_a_function_that_stays_exclude_each_other():
    with pytest.raises(UsageError, match="zero_gamma"):
        bnpass.insert(net("a = Relu(c)"), zero_gamma=True, init="preserve")


def test_a_residual_join_has_its_batch_norm_on_the_branch():
    text = """r = Relu(c)
      e = Conv <pads = [1,1,1,1]> (r, u, b)
      s = Relu(e)
      f = Conv <pads = [1,1,1,1]> (s, u, b)
      p = Add(f, r)
      a = Relu(p)"""
    result = insert(net(text, {"u": (4, 4, 3, 3)}))
    assert result.sites == {"c": ("r",), "e": ("s",), "f": ("a",)}


def test_one_site_serves_several_nonlinearities():
    text = "r = Relu(c)\n t = Tanh(c)\n a = Add(r, t)"
    result = insert(net(text))
    assert result.sites == {"c": ("r", "t")}


def test_a_reader_that_is_no_nonlinearity_refuses():
    text = "r = Relu(c)\n p = Conv(c, u)\n a = Add(r, p)"
    model = net(text, {"u": (4, 4, 1, 1)})
    result = insert(model)
    assert not result.sites and "'p'" in result.reasons["r"]
    assert_equal_bytes(result.after, model)
    cloned = insert(model, clone=True)
    assert cloned.kinds().count("Conv") == 4 and len(cloned.plan.sites) == 1


def test_a_value_that_is_an_output_refuses():
    text = """(float[N,3,8,8] x) => (float[] y, float[] c) {
      c = Conv(x, w, b)
      r = Relu(c)
      y = Conv(r, v)
    }"""
    result = insert(build(text, {"w": (4, 3, 3, 3), "b": (4,), "v": (2, 4, 1, 1)}))
    assert not result.sites and "output" in result.reasons["r"]


def test_a_reader_of_the_shape_does_not_matter():
    text = """(float[N,3,8,8] x) => (float[] y, int64[] s) {
      c = Conv(x, w, b)
      s = Shape(c)
      r = Relu(c)
      y = Conv(r, v)
    }"""
    result = insert(build(text, {"w": (4, 3, 3, 3), "b": (4,), "v": (2, 4, 1, 1)}))
    assert result.sites == {"c": ("r",)}


def test_nothing_in_front_but_an_input():
    text = """(float[N,3,8,8] x) => (float[] y) {
      r = Relu(x)
      k = Mul(r, s)
      t = Tanh(k)
      y = Conv(t, v)
    }"""
    result = insert(build(text, {"s": (3, 1, 1), "v": (2, 3, 1, 1)}))
    assert not result.sites
    assert "no layer in front" in result.reasons["r"] and "t" in result.reasons


def test_behind_a_normalisation_only_when_asked():
    text = "m = InstanceNormalization(c, s, t)\n a = Relu(m)"
    model = net(text, {"s": (4,), "t": (4,)})
    result = insert(model)
    assert not result.sites and "already normalised" in result.reasons["a"]
    assert insert(model, norms=True).sites == {"m": ("a",)}


def test_a_batch_norm_that_is_there_is_enough():
    result = insert(net("m = BN(c, n)\n a = Relu(m)", {"n": Norm(4)}))
    assert not result.sites and "already normalised" in result.reasons["a"]


def test_channels_last():
    text = """t = Transpose <perm = [0,2,3,1]> (c)
      e = Add(t, k)
      r = Relu(e)
      a = Transpose <perm = [0,3,1,2]> (r)"""
    result = insert(net(text, {"k": (4,)}))
    (site,) = result.plan.sites
    assert site.axis == 3 and site.channels == 4 and result.dropped == {"c", "e"}


@pytest.mark.parametrize("lead", ["N", "N,T", "N,2,T", "N,2,2,2"])
def test_linear_layers_of_rank_2_to_5(lead):
    text = f"""(float[{lead},7] x) => (float[] y) {{
      h = MatMul(x, w)
      c = Add(h, b)
      r = Relu(c)
      y = MatMul(r, v)
    }}"""
    result = insert(build(text, {"w": (7, 4), "b": (4,), "v": (4, 2)}))
    (site,) = result.plan.sites
    assert site.axis == lead.count(",") + 1 and result.dropped == {"c"}


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_one_and_three_dimensions(dims):
    text = f"""(float[N,3,{",".join("5" * dims)}] x) => (float[] y) {{
      c = Conv(x, w, b)
      r = Relu(c)
      y = GlobalAveragePool(r)
    }}"""
    model = build(text, {"w": (4, 3) + (2,) * dims, "b": (4,)})
    assert list(insert(model, last=True).sites) == ["c"]


def test_an_embedding_takes_a_batch_norm():
    text = """(int64[N,T] i) => (float[] y) {
      e = Gather(w, i)
      r = Tanh(e)
      y = MatMul(r, v)
    }"""
    result = insert(build(text, {"w": (5, 4), "v": (4, 2)}))
    assert result.plan.sites[0].axis == 2


@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
def test_recurrent_layers_are_normalised_on_their_input(op):
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[op] * 4
    text = f"""(float[T,N,3] x) => (float[] y) {{
      s = {op} <hidden_size = 4> (x, w, u, b)
      q = Squeeze(s, one)
      y = MatMul(q, v)
    }}"""
    weights = {"w": (1, gates, 3), "u": (1, gates, 4), "b": (1, 2 * gates), "one": [1]}
    result = insert(build(text, {**weights, "v": (4, 2)}))
    (site,) = result.plan.sites
    assert site.axis == 2 and site.channels == gates


# --- biases


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("p = AveragePool <kernel_shape = [2,2]> (c)\n a = Relu(p)", {"c"}),
        ("e = Conv(x, u, k)\n p = Add(c, e)\n a = Relu(p)", {"c", "e"}),
        ("e = Conv(x, u, k)\n p = Concat <axis = 1> (c, e)\n q = Conv(p, t)\n a = Relu(q)", set()),
        ("p = Add(c, l)\n a = Relu(p)", {"c", "p"}),
        ("p = Add(l, c)\n a = Relu(p)", {"c", "p"}),
        ("p = Sub(c, l)\n a = Relu(p)", {"c", "p"}),
        ("p = Identity(c)\n a = Relu(p)", {"c"}),
        ("p = Dropout(c, half, yes)\n a = Relu(p)", {"c"}),
    ],
)  # fmt: skip
def test_biases_that_beta_subsumes_go(text, dropped):
    constants = {"u": (4, 3, 3, 3), "k": (4,), "t": (4, 8, 1, 1), "l": (1, 4, 1, 1)}
    constants |= {"half": 0.0, "yes": np.array(True)}
    used = {k: v for k, v in constants.items() if re.search(rf"\b{k}\b", text)}
    assert insert(net(text, used)).dropped == dropped


def test_a_bias_in_front_of_a_live_dropout_stays():
    text = """p = Dropout(c, half, yes)
      q = Conv(p, u)
      a = Relu(q)"""
    constants = {"u": (4, 4, 1, 1), "half": 0.0, "yes": np.array(True)}
    assert insert(net(text, constants)).dropped == set()
    text = "p = Dropout(c, half, yes)\n q = AveragePool <kernel_shape = [2,2]> (p)\n a = Relu(q)"
    constants.pop("u")
    assert insert(net(text, constants)).dropped <= {"c"}


def test_a_bias_that_others_read_stays_for_them():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      r = Relu(c)
      y = Conv(r, v)
      z = Conv(x, w, b)
    }"""
    result = insert(build(text, {"w": (4, 3, 3, 3), "b": (4,), "v": (2, 4, 1, 1)}))
    assert result.dropped == {"c"}
    kept = {t.name for t in result.after.graph.initializer}
    assert "b" in kept and list(result.after.graph.node[-1].input) == ["x", "w", "b"]


def test_a_bias_that_also_goes_elsewhere_stays():
    text = "p = Dropout(c)\n r = Relu(p)\n s = Shape(c)\n a = Identity(r)"
    assert insert(net(text)).dropped == {"c"}


@pytest.mark.parametrize("opset", [9, 10, 11])
def test_gemm_before_opset_11_needs_its_bias(opset):
    text = """(float[N,7] x) => (float[] y) {
      c = Gemm(x, w, b)
      r = Relu(c)
      y = Gemm(r, v, d)
    }"""
    weights = {"w": (7, 4), "b": (4,), "v": (4, 2), "d": (2,)}
    result = insert(build(text, weights, opset=opset, ir=4))
    assert result.dropped == {"c"}
    first = result.after.graph.node[0]
    assert len(first.input) == (3 if opset < 11 else 2)


@pytest.mark.parametrize("shape", [(), (1,), (1, 4), (2, 4), (2, 1)])
def test_gemm_with_a_bias_of_any_shape(shape):
    text = """(float[2,7] x) => (float[] y) {
      c = Gemm <beta = 0.5> (x, w, b)
      r = Relu(c)
      y = Gemm(r, v)
    }"""
    result = insert(build(text, {"w": (7, 4), "b": shape, "v": (4, 2)}))
    assert result.dropped == (set() if shape and shape[0] == 2 else {"c"})


def test_fresh_drops_the_bias_and_says_so():
    model = net("a = Relu(c)")
    plan = bnpass.insert(model, plan_only=True)
    assert plan.dropped == 1
    after = bnpass.insert(model)
    values = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    norm = next(n for n in after.graph.node if n.op_type == "BatchNormalization")
    gamma, beta, mean, var = (values[name] for name in norm.input[1:])
    assert (gamma == 1).all() and (var == 1).all() and not beta.any() and not mean.any()
    assert "b" not in values and norm.name == "c_bn"


def test_calibrated_keeps_the_function_and_holds_the_statistics():
    model = net("a = Relu(c)")
    x = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    after = bnpass.insert(model, init="calibrated", data=[x[:20], x[20:]])
    assert_same(model, after)
    values = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    norm = next(n for n in after.graph.node if n.op_type == "BatchNormalization")
    from tests.helpers import run

    probe = onnx.ModelProto()
    probe.CopyFrom(after)
    del probe.graph.output[:]
    probe.graph.output.append(
        onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, ["N", 4, 6, 6])
    )
    c = run(probe, {"x": x})["c"]
    np.testing.assert_allclose(values[norm.input[3]], c.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(values[norm.input[4]], c.var((0, 2, 3)), rtol=1e-3)


def test_calibrated_needs_data():
    with pytest.raises(UsageError, match="needs data"):
        bnpass.insert(net("a = Relu(c)"), init="calibrated")


# --- models that get nothing


def test_quantised_models_are_refused():
    text = """(float[N,3,8,8] x) => (float[] y) {
      q = QuantizeLinear(x, s)
      e = DequantizeLinear(q, s)
      c = Conv(e, w)
      y = Relu(c)
    }"""
    model = build(text, {"s": 0.1, "w": (4, 3, 3, 3)})
    with pytest.raises(InputError, match="quantised"):
        bnpass.insert(model)


def test_nonlinearities_inside_control_flow_are_listed():
    text = """(float[N,3,8,8] x, bool q) => (float[N,4,6,6] y) {
      y = If (q) <
        then_branch = one () => (float[N,4,6,6] t) { c = Conv(x, w) t = Relu(c) },
        else_branch = two () => (float[N,4,6,6] e) { e = Conv(x, w) }
      >
    }"""
    plan = bnpass.insert(build(text, {"w": (4, 3, 3, 3)}), plan_only=True)
    assert not plan.sites and plan.skipped[0].reason == "inside control flow"


def test_an_axis_of_one_entry_is_no_channel_axis_where_there_is_another():
    text = """(float[N,1,6] x) => (float[] y) {
      h = MatMul(x, w)
      r = Relu(h)
      y = MatMul(r, v)
    }"""
    plan = bnpass.insert(build(text, {"w": (6, 5), "v": (5, 2)}), plan_only=True)
    assert [(site.axis, site.channels) for site in plan.sites] == [(2, 5)]


# --- squeeze and excitation

GATED = {"w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1)}


def gated(product="Mul(c, g)", behind="s = Add(m, x)", more=""):
    return build(
        f"""(float[N,4,8,8] x) => (float[] y) {{ c = Conv <pads = [1,1,1,1]> (x, w, b)
        p = GlobalAveragePool(c) e = Conv(p, w1) r = Relu(e) f = Conv(r, w2) g = Sigmoid(f)
        m = {product} {behind} a = Relu(s) {more or "y = Conv(a, v)"} }}""",
        {"w": (4, 4, 3, 3), "b": (4,), "v": (2, 4, 1, 1), **GATED},
    )


@pytest.mark.parametrize("product", ["Mul(c, g)", "Mul(g, c)"])
def test_a_layer_whose_value_scales_itself_is_normalised(product):
    model = gated(product)
    result = insert(model)
    assert result.sites == {"c": ("a",), "e": ("r",)}
    assert result.dropped == {"c"}


@pytest.mark.parametrize(
    ("options", "why"),
    [({"product": "Mul(x, g)"}, "the gate is made of another value"),
     ({"more": "z = Conv(c, v) o = Conv(a, v) y = Add(z, o)"}, "something else reads it")],
)  # fmt: skip
def test_no_other_value_in_front_of_a_gate_is_normalised_for_it(options, why):
    plan = bnpass.insert(gated(**options), plan_only=True)
    assert [site.value for site in plan.sites] == ["e"], why


@pytest.mark.parametrize(
    "spelt", ["Sigmoid(q)", "Tanh(q)", "HardSigmoid(q)", "Softsign(q)", "Clip(q, zero, six)"]
)
def test_every_bounded_nonlinearity_may_be_a_gate(spelt):
    text = f"p, q = Split <axis = 1> (c, two)\n g = {spelt}\n a = Mul(p, g)"
    limits = {"zero": np.float32(0), "six": np.float32(6)} if "Clip" in spelt else {}
    weights = {"two": [2, 2], "v": (2, 2, 3, 3), **limits}
    assert "a gate" in insert(net(text, weights)).reasons["g"]


def test_a_table_behind_a_nonlinearity_is_a_layer():
    text = "r = Relu(c)\n i = ArgMax <axis = 1, keepdims = 0> (r)"
    model = net(text, {"t": (4, 5)}, last="y = Gather(t, i)")
    assert insert(model).sites == {"c": ("r",)}
