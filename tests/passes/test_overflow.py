"""Folds whose new numbers the weights' type cannot hold: that map stays, and the fold ends."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import assert_stays, build, fold, half

LARGE = np.float32(1e5)  # above float16's 65504


def norm(channels, gamma=1.0, beta=0.0, dtype=np.float32):
    arrays = {"g": gamma, "b": beta, "m": 0.0, "v": 1.0}
    return {f"n_{k}": np.full(channels, a, dtype) for k, a in arrays.items()}


@pytest.mark.parametrize(
    "layers",
    ["h = MatMul(x, w)", "p = MatMul(x, w)\n h = Add(p, b)", "p = MatMul(x, w)\n h = Add(b, p)",
     "h = Gemm(x, w)", "h = Gemm(x, w, b)", 'h = Einsum <equation = "nk,kc->nc"> (x, w)'],
)  # fmt: skip
def test_a_shift_beyond_float16_stays(layers):
    text = f"""(float16[N,6] x) => (float16[] y) {{
      {layers}
      z = BN(h, n)
      y = Tanh(z)
    }}"""
    weights = {"w": half(6, 4), "b": half(4), **norm(4, beta=LARGE)}
    assert_stays(build(text, weights), "not be finite", rtol=5e-3)


def test_a_shift_into_a_recurrent_layer_stays():
    text = """(float16[3,N,4] x) => (float16[] y) {
      t = Tanh(x)
      p = Transpose <perm = [1,2,0]> (t)
      z = BN(p, n)
      s = Transpose <perm = [2,0,1]> (z)
      y, last = RNN <hidden_size = 2> (s, w, r)
    }"""
    weights = {"w": half(1, 2, 4), "r": half(1, 2, 2), **norm(4, beta=LARGE)}
    assert_stays(build(text, weights), "not be finite", rtol=5e-3)


@pytest.mark.parametrize("leftover", ["bn", "affine"])
@pytest.mark.parametrize(
    "chain",
    [
        "a = BN(t, n)\n z = Mul(a, k)",
        "a = Mul(t, k)\n z = BN(a, n)",
        "a = Mul(t, q)\n b = Add(a, q)\n z = Mul(b, k)",
    ],
)
def test_a_chain_whose_product_is_beyond_float16_stays_as_it_is(chain, leftover):
    text = f"""(float16[N,4,3] x) => (float16[] y) {{
      t = Tanh(x)
      {chain}
      y = Tanh(z)
    }}"""
    weights = {"k": np.float16([6e4]), "q": np.full((4, 1), 1e3, np.float16)}
    model = build(text, {**weights, **norm(4, gamma=1e3, dtype=np.float16)})
    result = fold(model, leftover=leftover)
    assert [n.op_type for n in result.after.graph.node] == [n.op_type for n in model.graph.node]


def test_a_leftover_as_mul_and_add_must_be_finite_too():
    text = """(float16[N,4,3] x) => (float16[] y) {
      t = Tanh(x)
      z = BN(t, n)
      y = Tanh(z)
    }"""
    model = build(text, norm(4, beta=LARGE))
    assert_stays(model, rtol=5e-3, leftover="affine")
    assert fold(build(text, norm(4, beta=1.0)), 5e-3, leftover="affine").count("Mul", "Add") == 2
