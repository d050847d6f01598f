"""Folds and insertions where sizes are computed, constants are typed at run time, shapes end."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import Norm, Weights, assert_folds, build, fold
from tests.helpers_insert import insert

MS, ML = ', "com.microsoft": 1', ', "ai.onnx.ml": 3'
CONV: Weights = {"W": (4, 3, 3, 3), "n": Norm(4)}

ZERO = "z = CastLike(nought, x)  s = Shape <start = {start}, end = {end}> (W)  b = Expand(z, s)"
"""Zeros in the type of the input, as many as a weight has channels: an absent bias of torch's."""


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        ("Conv(x, W, b)", (4, 3, 3, 3), 0),
        ("ConvTranspose(x, W, b)", (3, 4, 3, 3), 1),
    ],
)
def test_a_bias_that_is_cast_like_the_input(layer: str, shape: tuple[int, ...], axis: int) -> None:
    zero = ZERO.format(start=axis, end=axis + 1)
    head = f"(float[N, 3, 6, 6] x) => (float[] y) {{ {zero}  c = {layer} "
    model = build(
        f"{head} d = BN(c, n)  y = Tanh(d) }}", {"W": shape, "n": Norm(4), "nought": 0.0}
    )
    assert_folds(model)
    plain = build(
        f"{head} t = Tanh(c)  y = Conv(t, U) }}",
        {"W": shape, "nought": 0.0, "U": (2, 4, 1, 1)},
    )
    assert list(insert(plain).sites) == ["c"]


def test_a_gemm_and_half_precision() -> None:
    """The type that CastLike takes over is that of the input, float16."""
    zero = ZERO.format(start=0, end=1)
    model = build(
        f"""(float16[N, 6] x) => (float16[] y)
        {{ {zero}  c = Gemm <transB = 1> (x, W, b)  d = BN(c, n)  y = Tanh(d) }}""",
        {
            "W": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float16),
            "n": Norm(4, dtype=np.float16),
            "nought": 0.0,
        },
    )
    assert_folds(model, rtol=5e-3)


def test_a_constant_as_large_as_a_value_of_known_shape() -> None:
    """ConstantOfShape(Shape(x)), and a size picked from it, where the shape of x is fixed."""
    model = build(
        """(float[2, 3, 6, 6] x) => (float[] y)
        { c = Conv(x, W)  s = Shape(c)  k = Gather(s, one)  u = Unsqueeze(k, zero)
          b = ConstantOfShape <value = float[1] {0.5}> (u)  w = Unsqueeze(b, places)
          a = Add(c, w)  d = BN(a, n)  y = Tanh(d) }""",
        {**CONV, "one": np.array(1), "zero": [0], "places": [0, 2, 3]},
    )
    result = assert_folds(model)
    assert result.count("Add") == 0


def test_readers_of_shapes_alone_are_let_be() -> None:
    """Shape and Size of the very value that changes, known and unknown, and a CastLike of it."""
    model = build(
        """(float[N, 3, 6, 6] x) => (float[] y, int64[] k)
        { c = Conv(x, W)  d = BN(c, n)  t = Tanh(d)  s = Shape(d)  m = Size(d)  q = Shape(c)
          h = CastLike(half, c)  e = Mul(t, h)  y = Reshape(e, s)
          o = Add(q, s)  k = Mul(o, m) }""",
        {**CONV, "half": 0.5},
    )
    assert_folds(model)


SHUFFLE = """s{i} = Shape(c)  n{i} = Gather(s{i}, zero)  k{i} = Gather(s{i}, one)
    h{i} = Gather(s{i}, two)  w{i} = Gather(s{i}, three)"""


@pytest.mark.parametrize("size", ["H", "6"])
def test_a_channel_shuffle_with_computed_sizes(size: str) -> None:
    """Channels over groups by Div, through floats, of a batch and an extent that are free."""
    model = build(
        f"""(float[N, 3, {size}, {size}] x) => (float[] y)
        {{ c = Conv(x, W)  s = Shape(c)  n = Gather(s, zero)  k = Gather(s, one)
          h = Gather(s, two)  w = Gather(s, three)
          kf = Cast <to = 1> (k)  gf = Div(kf, pair)  ff = Floor(gf)  g = Cast <to = 7> (ff)
          nu = Unsqueeze(n, axis)  gu = Unsqueeze(g, axis)  ku = Unsqueeze(k, axis)
          hu = Unsqueeze(h, axis)  wu = Unsqueeze(w, axis)
          to = Concat <axis = 0> (nu, groups, gu, hu, wu)
          back = Concat <axis = 0> (nu, ku, hu, wu)
          a = Reshape(c, to)  b = Transpose <perm = [0, 2, 1, 3, 4]> (a)  e = Reshape(b, back)
          d = BN(e, n1)  y = Tanh(d) }}""",
        {"W": (4, 3, 3, 3), "n1": Norm(4), "zero": np.array(0), "one": np.array(1),
         "two": np.array(2), "three": np.array(3), "axis": [0], "groups": [2], "pair": 2.0},
    )  # fmt: skip
    assert_folds(model)


def test_tokens_merged_into_a_free_batch_of_free_length() -> None:
    model = build(
        """(float[N, T, 6] x) => (float[] y)
        { h = MatMul(x, W)  s = Shape(h)  n = Slice(s, zero, one)  t = Slice(s, one, two)
          m = Mul(n, t)  k = Concat <axis = 0> (m, rest)  r = Reshape(h, k)
          d = BN(r, n1)  y = Tanh(d) }""",
        {"W": (6, 8), "n1": Norm(8), "zero": [0], "one": [1], "two": [2], "rest": [-1]},
    )
    assert_folds(model)


def test_free_sizes_that_mix_with_the_channels_still_refuse() -> None:
    """(N, T, 6) to (N, -1): the BN has an entry for each of 4 times 6, no map of channels."""
    model = build(
        """(float[N, T, 6] x) => (float[] y)
        { h = MatMul(x, W)  s = Shape(x)  n = Slice(s, zero, one)
          k = Concat <axis = 0> (n, rest)  r = Reshape(h, k)  d = BN(r, n1)  y = Tanh(d) }""",
        {"W": (6, 6), "n1": Norm(24), "zero": [0], "one": [1], "rest": [-1]},
    )
    assert fold(model).count("BatchNormalization") == 1


BEHIND = {
    "Gelu": "g = com.microsoft.Gelu(x)",
    "FusedConv": 'g = com.microsoft.FusedConv <activation = "Relu", pads = [1, 1, 1, 1]> (x, V)',
    "Scaler": "g = ai.onnx.ml.Scaler <offset = [0.5], scale = [2.0]> (x)",
}


@pytest.mark.parametrize("first", BEHIND)
@pytest.mark.parametrize("middle", ["c = Conv(g, W)", "k = Conv(g, W)  c = Add(k, wide)"])
def test_behind_operators_of_other_domains(first: str, middle: str) -> None:
    given = {**CONV, "V": (3, 3, 3, 3), "U": (2, 4, 1, 1), "wide": (1, 4, 1, 1)}
    body = f"{BEHIND[first]}  {middle}"
    used = {k: v for k, v in given.items() if k in ("n", "U") or f"{k}" in body}
    head = "(float[N, 3, 8, 8] x) => (float[A, 2, B, C] y)"
    model = build(
        f"{head} {{ {body}  d = BN(c, n)  t = Tanh(d)  y = Conv(t, U) }}", used, domains=MS + ML
    )
    assert_folds(model)
    del used["n"]
    plain = build(f"{head} {{ {body}  t = Tanh(c)  y = Conv(t, U) }}", used, domains=MS + ML)
    assert len(insert(plain).sites) == 1


def test_sizes_are_no_way_to_an_output() -> None:
    """Keras' Dense on steps: what the product is reshaped to is computed from the nonlinearity."""
    model = build(
        """(float[N, 5, 6] x) => (float[] y)
        { m = MatMul(x, W)  t = Relu(m)  s = Shape(t)  n = Slice(s, zero, two)
          k = Concat <axis = 0> (n, three)  f = Reshape(t, rows)  p = MatMul(f, V)
          y = Reshape(p, k) }""",
        {"W": (6, 8), "V": (8, 3), "zero": [0], "two": [2], "three": [3], "rows": [-1, 8]},
    )
    assert list(insert(model).sites) == ["m"]


def test_what_cannot_be_computed_ahead_is_no_constant() -> None:
    """onnx's evaluator fails on the GatherElements of every BERT export; the fold goes on."""
    model = build(
        """(float[1, 32, 8] x) => (float[] y)
        { t = Expand(table, wide)  i = GatherElements <axis = 1> (t, places)  e = Gather(V, i)
          s = Add(x, e)  m = MatMul(s, W)  a = Add(m, b)  d = Transpose <perm = [0, 2, 1]> (a)
          f = BN(d, n)  y = Tanh(f) }""",
        {"table": np.zeros((1, 64), np.int64), "wide": [1, 64],
         "places": np.arange(32)[None].astype(np.int64), "V": (2, 8), "W": (8, 4), "b": (4,),
         "n": Norm(4)},
    )  # fmt: skip
    assert_folds(model)


def test_an_operator_few_compute_weights_with_is_evaluated() -> None:
    """Trilu of a weight is a constant like any other."""
    model = build(
        """(float[N, 6] x) => (float[] y)
        { w = Trilu(W)  c = MatMul(x, w)  d = BN(c, n)  y = Tanh(d) }""",
        {"W": (6, 6), "n": Norm(6)},
    )
    result = assert_folds(model)
    assert result.count("Trilu") == 0
