"""Composites: what runtimes fuse stays as it is spelt; what stands beside it still folds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

import bnpass
from bnpass.cli import main
from bnpass.frontends.onnx.read import read
from bnpass.passes.composites import find_composites
from tests.helpers import Norm, build, fold, nodes, positive

TOKENS = "(float[N,5,8] x) => (float[N,5,6] y)"
HALF, ROOT2, TANH = np.float32(0.5), np.float32(2**0.5), np.float32((2 / np.pi) ** 0.5)
NUMBERS = {"one": np.float32(1), "two": np.float32(2), "three": np.float32(3)}
C = {"half": HALF, "root": ROOT2, **NUMBERS}

GELUS = {
    "erf": "a = Div(c, root) e = Erf(a) f = Add(e, one) g = Mul(c, f) r = Mul(g, half)",
    "erf, half first": "h = Mul(half, c) a = Div(c, root) e = Erf(a) f = Add(one, e) r = Mul(h, f)",
    "erf, half inside": "a = Mul(c, inv) e = Erf(a) f = Add(e, one) h = Mul(f, half) r = Mul(c, h)",
    "tanh": """q = Pow(c, three) k = Mul(q, cube) s = Add(c, k) u = Mul(s, tanh) e = Tanh(u)
        f = Add(e, one) g = Mul(half, c) r = Mul(g, f)""",
    "tanh, half last": """q = Pow(c, three) k = Mul(q, cube) s = Add(c, k) u = Mul(s, tanh)
        e = Tanh(u) f = Add(e, one) g = Mul(c, f) r = Div(g, two)""",
}
CONSTANTS = {**C, "inv": np.float32(2**-0.5), "cube": np.float32(0.044715), "tanh": TANH}

LAYER_NORM = """m = ReduceMean <axes = [-1]> (c) d = Sub(c, m) q = Pow(d, two)
    v = ReduceMean <axes = [-1]> (q) w = Add(v, eps) s = Sqrt(w) n = Div(d, s)
    o = Mul(n, gamma) r = Add(o, beta)"""
RMS_NORM = """q = Pow(c, two) v = ReduceMean <axes = [-1]> (q) w = Add(v, eps) s = Sqrt(w)
    t = Div(one, s) n = Mul(c, t) r = Mul(n, gamma)"""
NORM = {**C, "eps": np.float32(1e-5), "gamma": (8,), "beta": (8,)}


def kernels(model, tmp_path):
    """How many nodes of each type are in onnxruntime's optimized graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)


def between_layers(text, constants, opset=14):
    body = f"{{ c = MatMul(x, w1) {text} y = MatMul(r, w2) }}"
    weights = {"w1": (8, 8), "w2": (8, 6), **constants}
    used = {k: v for k, v in weights.items() if k in body.replace("(", " ").replace(",", " ")
            .replace(")", " ").split()}  # fmt: skip
    return build(TOKENS + body, used, opset=opset)


def assert_kernels(model, result, tmp_path, *names):
    before, after = kernels(model, tmp_path), kernels(result.after, tmp_path)
    assert any(before[n] for n in names), before
    for name in names:
        assert after[name] == before[name], (name, before, after)


@pytest.mark.parametrize("name", GELUS)
def test_a_gelu_keeps_its_constants(name, tmp_path):
    model = between_layers(GELUS[name], CONSTANTS)
    result = fold(model)
    before, after = kernels(model, tmp_path), kernels(result.after, tmp_path)
    assert after == before
    assert {e.reason for e in result.plan.spared} == {"part of a Gelu"}
    assert not result.plan.folded


def test_a_scale_behind_a_gelu_moves_without_its_half(tmp_path):
    text = GELUS["erf"].replace("r =", "z =") + " r = Mul(z, more)"
    model = between_layers(text, {**CONSTANTS, "more": np.float32(1.7)})
    result = fold(model)
    assert result.count("Mul") == 2
    assert_kernels(model, result, tmp_path, "Gelu")


@pytest.mark.parametrize("kind", ["Sigmoid", "Relu"])
def test_a_scalar_behind_silu_or_relu_moves(kind):
    silu = "s = Sigmoid(c) t = Mul(c, s) r = Mul(t, more)"
    text = silu if kind == "Sigmoid" else "t = Relu(c) r = Mul(t, more)"
    result = fold(between_layers(text, {"more": np.float32(1.79)}))
    assert result.count("Mul") == (1 if kind == "Sigmoid" else 0)


OTHERS = (
    "h = Add(c, three) k = Clip(h, zero, six) g = Mul(c, k) r = Div(g, six)",
    "l = Exp(c) h = Add(l, one) k = Log(h) t = Tanh(k) r = Mul(c, t)",
)


@pytest.mark.parametrize("spelt", OTHERS)
def test_other_activations_are_atoms(spelt):
    more = {"zero": np.float32(0), "six": np.float32(6)}
    result = fold(between_layers(spelt, {**CONSTANTS, **more}))
    assert not result.plan.folded
    assert all("HardSwish" in e.reason or "Mish" in e.reason for e in result.plan.spared)


@pytest.mark.parametrize("norm", [LAYER_NORM, RMS_NORM])
@pytest.mark.parametrize("trained", [True, False])
def test_gamma_and_beta_of_a_norm_stay(norm, trained, tmp_path):
    plain = {"gamma": np.ones(8, np.float32), "beta": np.zeros(8, np.float32)}
    model = between_layers(norm, NORM if trained else {**NORM, **plain})
    result = fold(model)
    assert not result.plan.folded
    assert all("Normalization" in e.reason for e in result.plan.spared)
    assert_kernels(model, result, tmp_path, "LayerNormalization", "SimplifiedLayerNormalization")


def test_fold_norms_moves_gamma_and_beta():
    result = fold(between_layers(LAYER_NORM, NORM), fold_norms=True)
    assert [e.how for e in result.plan.folded] == ["forward"]
    assert result.count("Mul") == 0 and result.count("Add") == 2  # eps, and behind the MatMul


def test_group_norm_spelt_out_is_an_atom():
    text = """(float[1,8,6,6] x) => (float[] y) {
      g = Reshape(x, groups)
      i = InstanceNormalization(g, ones, zeros)
      b = Reshape(i, back)
      o = Mul(b, gamma)
      r = Add(o, beta)
      y = Conv(r, w)
    }"""
    ones = {"ones": np.ones(4, np.float32), "zeros": np.zeros(4, np.float32)}
    weights = {"groups": [1, 4, -1], "back": [1, 8, 6, 6], "gamma": (8, 1, 1), "beta": (8, 1, 1)}
    model = build(text, {**ones, **weights, "w": (4, 8, 3, 3)})
    result = fold(model)
    assert {e.reason for e in result.plan.spared} == {"part of a GroupNormalization"}
    assert fold(model, fold_norms=True).count("Mul") == 0


def test_the_scale_in_front_of_a_softmax_stays():
    text = """(float[N,5,8] x, float[N,1,5] mask) => (float[] y) {
      q = MatMul(x, wq) k = MatMul(x, wk) t = Transpose <perm = [0,2,1]> (k)
      p = MatMul(q, t) s = Mul(p, half) a = Add(s, mask) z = Softmax(a) y = MatMul(z, x)
    }"""
    result = fold(build(text, {"wq": (8, 4), "wk": (8, 4), "half": HALF}))
    assert not result.plan.folded
    assert [e.reason for e in result.plan.spared] == ["part of a Softmax"]


# --- BatchNorms beside composites


def test_a_batch_norm_goes_past_a_gelu_not_into_it(tmp_path):
    text = f"""(float[1,8,6,6] x) => (float[] y) {{
      c = Conv(x, w, b) {GELUS["erf"]} n = BN(r, n) y = Conv(n, v)
    }}"""
    used = {k: C[k] for k in ("root", "one", "half")}
    more = {"w": (8, 8, 1, 1), "b": (8,), "v": (4, 8, 1, 1), "n": Norm(8)}
    model = build(text, {**used, **more})
    result = fold(model)
    assert [e.how for e in result.plan.folded] == ["forward"]
    assert_kernels(model, result, tmp_path, "Gelu")


def test_a_batch_norm_that_stays_takes_no_constant_of_a_composite():
    text = f"""(float[1,8,6,6] x) => (float[] y) {{
      c = Conv(x, w, b) {GELUS["erf"]} n = BN(r, n) z = Relu(n) y = Conv(z, v)
    }}"""
    used = {k: C[k] for k in ("root", "one", "half")}
    more = {"w": (8, 8, 1, 1), "b": (8,), "v": (4, 8, 1, 1), "n": positive(8)}
    result = fold(build(text, {**used, **more}))
    assert result.count("BatchNormalization") == 1 and result.count("Mul") == 2


@pytest.mark.parametrize("kind", ["erf", "hard-swish"])
def test_a_batch_norm_enters_a_last_constant_by_which_nothing_is_known(kind):
    """Its scale never enters the 0.5 of a GELU: other numbers, and there is no fused kernel."""
    text = f"""(float[1,8,6,6] x) => (float[] y) {{
      c = Conv(x, w, b) {GELUS["erf"] if kind == "erf" else OTHERS[0]} n = BN(r, n) z = Sigmoid(n)
      y = Conv(z, v)
    }}"""
    names = ("root", "one", "half") if kind == "erf" else ("three",)
    six = {} if kind == "erf" else {"six": np.float32(6), "zero": np.float32(0)}
    more = {"w": (8, 8, 1, 1), "b": (8,), "v": (4, 8, 1, 1), "n": positive(8, shift=False)}
    result = fold(build(text, {**{k: C[k] for k in names}, **six, **more}))
    assert result.count("BatchNormalization") == (1 if kind == "erf" else 0)


def test_no_site_whose_norm_would_have_to_enter_a_gelu():
    text = f"""(float[N,5,8] x) => (float[N,5,6] y) {{
      c = MatMul(x, w1) {GELUS["erf"]} s = MatMul(x, w3) t = Add(r, s) u = Relu(t)
      y = MatMul(u, w2)
    }}"""
    used = {k: C[k] for k in ("root", "one", "half")}
    model = build(text, {**used, "w1": (8, 8), "w3": (8, 8), "w2": (8, 6)}, opset=14)
    inserted = bnpass.insert(model, init="preserve")
    assert fold(inserted).count("BatchNormalization") == 0


def test_a_batch_norm_behind_a_norm_enters_gamma_and_beta(tmp_path):
    text = """(float[N,8] x) => (float[] y) {
      m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) q = Pow(d, two)
      v = ReduceMean <axes = [-1]> (q) w = Add(v, eps) s = Sqrt(w) n = Div(d, s)
      o = Mul(n, gamma) r = Add(o, beta) b = BN(r, b) y = Relu(b)
    }"""
    weights = {"two": C["two"], "eps": NORM["eps"], "gamma": (8,), "beta": (8,), "b": Norm(8)}
    model = build(text, weights, opset=14)
    result = fold(model)
    assert result.count("BatchNormalization") == 0
    assert_kernels(model, result, tmp_path, "LayerNormalization")


# --- layers quantised at run time


def dynamic(bias=True, norm="Norm", per_column=False):
    rng = np.random.default_rng(3)
    end = "a = Add(m, bias)" if bias else "a = Identity(m)"
    text = f"""(float[N,8] x) => (float[N,6] y) {{
      q, s, z = DynamicQuantizeLinear(x)
      p = MatMulInteger(q, codes, z, zero)
      f = Cast <to = 1> (p)
      k = Mul(s, scale)
      m = Mul(f, k)
      {end if bias else ""}
      b = BN({"a" if bias else "m"}, n)
      y = Relu(b)
    }}"""
    weights = {
        "codes": rng.integers(-127, 128, (8, 6)).astype(np.int8),
        "zero": np.array(0, np.int8) if not per_column else np.zeros(6, np.int8),
        "scale": rng.uniform(0.002, 0.01, 6).astype(np.float32) if per_column else
        np.float32(0.004),
        "n": Norm(6),
    }  # fmt: skip
    return build(text, {**weights, **({"bias": (6,)} if bias else {})}, opset=14)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_column", [True, False])
def test_a_dynamically_quantised_layer_takes_a_batch_norm_in(bias, per_column, tmp_path):
    model = dynamic(bias, per_column=per_column)
    result = fold(model)
    assert result.count("BatchNormalization") == 0
    assert result.count("MatMulInteger") == result.count("Add") == 1
    assert_kernels(model, result, tmp_path, "DynamicQuantizeMatMul")


def test_a_dynamically_quantised_convolution_takes_a_batch_norm_in():
    rng = np.random.default_rng(3)
    text = """(float[N,3,6,6] x) => (float[] y) {
      q, s, z = DynamicQuantizeLinear(x)
      p = ConvInteger(q, codes, z)
      f = Cast <to = 1> (p)
      k = Mul(s, scale)
      m = Mul(f, k)
      a = Add(m, bias)
      b = BN(a, n)
      y = Relu(b)
    }"""
    codes = rng.integers(0, 255, (6, 3, 3, 3)).astype(np.uint8)
    weights = {"codes": codes, "scale": np.float32(0.004), "bias": (1, 6, 1, 1), "n": Norm(6)}
    assert fold(build(text, weights, opset=14)).count("BatchNormalization") == 0


def test_a_scale_without_a_batch_norm_leaves_the_layer_alone(tmp_path):
    text = """(float[N,8] x) => (float[N,6] y) {
      q, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(q, codes, z) f = Cast <to = 1> (p)
      k = Mul(s, scale) m = Mul(f, k) a = Add(m, bias) h = Mul(a, half) y = Relu(h)
    }"""
    codes = np.random.default_rng(3).integers(-127, 128, (8, 6)).astype(np.int8)
    weights = {"codes": codes, "scale": np.float32(0.004), "bias": (6,), "half": HALF}
    model = build(text, weights, opset=14)
    assert_kernels(model, fold(model), tmp_path, "DynamicQuantizeMatMul")


# --- words


def test_the_report_says_what_was_left_alone(tmp_path, capsys):
    model = between_layers(GELUS["erf"], CONSTANTS)
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["fold", str(tmp_path / "m.onnx"), "--explain"]) == 0
    assert "3 constants left alone: part of a Gelu (3)" in capsys.readouterr().out
    plan = bnpass.fold(model, plan_only=True).to_dict()
    assert {e["reason"] for e in plan["spared"]} == {"part of a Gelu"}


def test_insert_and_fold_see_the_same_gelu():
    model = between_layers(GELUS["tanh, half last"], CONSTANTS)
    inserted = bnpass.insert(model, last=True)
    (norm,) = [n for n in nodes(inserted.graph) if n.op_type == "BatchNormalization"]
    assert norm.name == "c_bn"
    assert fold(inserted).count("BatchNormalization") == 0


@pytest.mark.parametrize(
    ("axes", "name"),
    [([2, 3], "InstanceNormalization"), ([1, 2, 3], "LayerNormalization"),
     ([3], "LayerNormalization")],
)  # fmt: skip
def test_what_a_spelt_out_norm_is_called(axes, name):
    model = build(
        """(float[N,4,8,8] x) => (float[] y) {
          m = ReduceMean(x, axes)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean(q, axes)
          e = Add(v, eps)  s = Sqrt(e)  y = Div(d, s) }""",
        {"axes": axes, "eps": np.float32(1e-5)}, opset=18,
    )  # fmt: skip
    found = find_composites(read(model).main.graph)
    assert [composite.name for composite in found] == [name]
