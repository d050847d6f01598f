"""Branches that are linear in one value become one operator, exactly."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.helpers import Norm, assert_same, build, fold, nodes, positive


def collapsed(text, weights, layers, *, mode="all", rtol=2e-5, kinds=("Conv",), **options):
    """The fold of a model; so many layers are left, and nothing that adds branches up."""
    result = fold(build(text, weights, **options), rtol, collapse=mode)
    assert result.count(*kinds) == layers, result.plan
    if layers == 1:
        assert result.count("Add", "Sub", "Sum", "BatchNormalization", "AveragePool", "Concat") == 0
    return result


def sum_of(*parts, dims="float[N,4,9,8]", out="float[]"):
    lines = [f"p{i} = {part}" for i, part in enumerate(parts)]
    names = ", ".join(f"p{i}" for i in range(len(parts)))
    return f"({dims} x) => ({out} y) {{ {' '.join(lines)} s = Sum({names}) y = Relu(s) }}"


FOUR = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "n": Norm(4), "b": (4,)}

SUMS = {
    "repvgg": (("Conv <pads = [1,1,1,1]> (x, w3, b)", "Conv(x, w1)", "BN(x, n)"), FOUR),
    "stride": (("Conv <pads = [1,1,1,1], strides = [2,2]> (x, w3)",
                "Conv <strides = [2,2]> (x, w1, b)"), FOUR),
    "unequal strides": (("Conv <pads = [1,1,1,1], strides = [2,3]> (x, w3)",
                         "Conv <strides = [2,3]> (x, w1, b)"), FOUR),
    "acnet": (("Conv <pads = [1,1,1,1]> (x, w3)", "Conv <pads = [0,1,0,1]> (x, wh)",
               "Conv <pads = [1,0,1,0]> (x, wv)"),
              {"w3": (4, 4, 3, 3), "wh": (4, 4, 1, 3), "wv": (4, 4, 3, 1)}),
    "dilation": (("Conv <pads = [2,2,2,2], dilations = [2,2]> (x, w3)", "Conv(x, w1)"),
                 {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1)}),
    "depthwise": (("Conv <pads = [1,1,1,1], group = 4> (x, d3)", "Conv <group = 4> (x, d1)",
                   "BN(x, n)"), {"d3": (4, 1, 3, 3), "d1": (4, 1, 1, 1), "n": Norm(4)}),
    "groups of two sizes": (("Conv <pads = [1,1,1,1], group = 2> (x, g3)",
                             "Conv <group = 4> (x, d1)"), {"g3": (4, 2, 3, 3), "d1": (4, 1, 1, 1)}),
    "uneven padding": (("Conv <pads = [0,2,1,0]> (x, a)", "Conv <pads = [0,1,1,1]> (x, c)"),
                       {"a": (4, 4, 2, 3), "c": (4, 4, 2, 3)}),
    "average": (("Conv <pads = [1,1,1,1]> (x, w3)",
                 "AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (x)"),
                {"w3": (4, 4, 3, 3)}),
    "auto_pad": (("Conv <auto_pad = \"VALID\"> (x, w3)", "Conv (x, v3)"),
                 {"w3": (4, 4, 3, 3), "v3": (4, 4, 3, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_branches_that_are_added_up(name):
    parts, weights = SUMS[name]
    collapsed(sum_of(*parts), weights, 1)


def test_pools_that_skip_their_padding_stay():
    for attrs in ("pads = [1,1,1,1]", "ceil_mode = 1"):
        pads = "pads = [1,1,1,1]" if "pads" in attrs else "strides = [1,1]"
        text = sum_of(f"Conv <{pads}> (x, w3)", f"AveragePool <kernel_shape = [3,3], {attrs}> (x)")
        result = fold(build(text, {"w3": (4, 4, 3, 3)}), collapse="all")
        assert result.count("AveragePool") == 1


def test_a_stride_that_ends_elsewhere_needs_a_known_size():
    parts = ("Conv <pads = [1,1,1,1], strides = [2,2]> (x, w3)",
             "AveragePool <kernel_shape = [2,2], strides = [2,2]> (x)")  # fmt: skip
    weights = {"w3": (4, 4, 3, 3)}
    collapsed(sum_of(*parts, dims="float[N,4,8,6]"), weights, 1)
    free = build(sum_of(*parts, dims="float[N,4,H,W]", out="float[N,4,A,B]"), weights)
    after = fold_only(free)
    assert sum(n.op_type == "AveragePool" for n in after.graph.node) == 1


def fold_only(model):
    import bnpass

    return bnpass.fold(model, collapse="all", verify=False)


# --- one behind the other


def chain(*ops, dims="float[N,4,9,8]"):
    lines = [f"v{i} = {op.replace('_', f'v{i - 1}' if i else 'x')}" for i, op in enumerate(ops)]
    return f"({dims} x) => (float[] y) {{ {' '.join(lines)} y = Relu(v{len(ops) - 1}) }}"


def test_a_point_then_a_window():
    text = chain("Conv(_, w1)", "Conv <pads = [1,1,1,1]> (_, w3)")
    collapsed(text, {"w1": (8, 4, 1, 1), "w3": (4, 8, 3, 3)}, 1)


def test_a_window_then_a_point():
    text = chain("Conv <pads = [1,1,1,1]> (_, w3, b)", "Conv(_, w1)", "BN(_, n)")
    collapsed(text, {"w3": (8, 4, 3, 3), "b": (8,), "w1": (4, 8, 1, 1), "n": Norm(4)}, 1)


def test_two_windows_with_all_padding_in_front():
    text = chain("Conv <pads = [2,2,2,2], strides = [2,2]> (_, a, b)", "Conv(_, c)",
                 dims="float[N,1,15,15]")  # fmt: skip
    weights = {"a": (16, 1, 3, 3), "b": (16,), "c": (1, 16, 3, 3)}
    collapsed(text, weights, 1)


def test_a_bias_in_front_of_padding_stays():
    text = chain("Conv(_, w1, b)", "Conv <pads = [1,1,1,1]> (_, w3)")
    collapsed(text, {"w1": (8, 4, 1, 1), "b": (8,), "w3": (4, 8, 3, 3)}, 2)


def test_a_window_in_front_of_padding_stays():
    text = chain("Conv <pads = [1,1,1,1]> (_, a)", "Conv <pads = [1,1,1,1]> (_, c)")
    result = fold(build(text, {"a": (16, 4, 3, 3), "c": (4, 16, 3, 3)}), collapse="all")
    assert result.count("Conv") == 2


def test_what_would_cost_more_stays():
    text = chain("Conv <pads = [1,1,1,1], group = 4> (_, d)", "Conv(_, p)")
    collapsed(text, {"d": (4, 1, 3, 3), "p": (8, 4, 1, 1)}, 2)


def test_diverse_branches():
    """1x1 then kxk, 1x1 then average, each with BNs: all but the padded biased ones."""
    text = """(float[N,4,9,8] x) => (float[] y) {
      a = Conv <pads = [1,1,1,1]> (x, w3) a2 = BN(a, n)
      c = Conv <pads = [1,1,1,1]> (x, v1) c2 = Conv(c, v3) c3 = BN(c2, m)
      e = Conv <pads = [1,1,1,1]> (x, u1) e2 = AveragePool <kernel_shape = [3,3]> (e)
      e3 = BN(e2, o)
      f = Conv(x, t1) f2 = BN(f, p)
      s = Add(a2, c3) s2 = Add(s, e3) s3 = Add(s2, f2) y = Relu(s3)
    }"""
    norms = {k: Norm(4) for k in "nmop"}
    weights = {"w3": (4, 4, 3, 3), "v1": (4, 4, 1, 1), "v3": (4, 4, 3, 3), "u1": (4, 4, 1, 1),
               "t1": (4, 4, 1, 1), **norms}  # fmt: skip
    collapsed(text, weights, 1, mode="bn")


# --- other layers and ranks


@pytest.mark.parametrize("rank", [1, 3])
def test_one_and_three_dimensions(rank):
    dims = {1: "float[N,4,9]", 3: "float[N,4,5,6,4]"}[rank]
    pads = ",".join("1" * 2 * rank)
    text = sum_of(f"Conv <pads = [{pads}]> (x, w3)", "Conv(x, w1)", "BN(x, n)", dims=dims)
    weights = {"w3": (4, 4, *(3,) * rank), "w1": (4, 4, *(1,) * rank), "n": Norm(4)}
    collapsed(text, weights, 1, mode="bn")


def test_an_adapter_beside_a_product():
    text = """(float[N,5,8] x) => (float[] y) {
      a = MatMul(x, w) b = Add(a, c) d = MatMul(x, low) e = MatMul(d, high) f = Mul(e, alpha)
      s = Add(b, f) y = Relu(s)
    }"""
    weights = {"w": (8, 6), "c": (6,), "low": (8, 2), "high": (2, 6), "alpha": np.float32(2)}
    result = fold(build(text, weights), collapse="all")
    assert result.count("MatMul") == 1 and result.count("Add") == 1


@pytest.mark.parametrize("trans", ["", "<transB = 1>", "<alpha = 0.5, beta = 2.0>"])
def test_gemms(trans):
    shape = (6, 8) if "transB" in trans else (8, 6)
    text = f"""(float[N,8] x) => (float[] y) {{
      a = Gemm {trans} (x, w, c) b = Gemm(x, v) n = BN(b, n) s = Sub(a, n) y = Relu(s)
    }}"""
    weights = {"w": shape, "c": (6,), "v": (8, 6), "n": Norm(6)}
    result = fold(build(text, weights), collapse="bn")
    assert result.count("Gemm") == 1 and result.count("Sub", "BatchNormalization") == 0


def test_outputs_side_by_side():
    text = """(float[N,4,9,8] x) => (float[] y) {
      a = Conv(x, w1) b = BN(a, n) c = Conv(x, v1) d = BN(c, m) s = Concat <axis = 1> (b, d)
      y = Relu(s)
    }"""
    weights = {"w1": (4, 4, 1, 1), "v1": (2, 4, 1, 1), "n": Norm(4), "m": Norm(2)}
    collapsed(text, weights, 1, mode="bn")


def test_side_by_side_then_one_layer():
    text = """(float[N,4,9,8] x) => (float[] y) {
      a = Conv <pads = [1,1,1,1]> (x, w3) c = Conv <pads = [1,1,1,1]> (x, v3)
      s = Concat <axis = 1> (a, c) t = Conv(s, p) y = Relu(t)
    }"""
    collapsed(text, {"w3": (8, 4, 3, 3), "v3": (8, 4, 3, 3), "p": (4, 16, 1, 1)}, 1)


# --- what must not change


def test_a_value_that_is_read_outside_stays():
    text = """(float[N,4,9,8] x) => (float[] y, float[] z) {
      a = Conv <pads = [1,1,1,1]> (x, w3) b = Conv(x, w1) s = Add(a, b) y = Relu(s)
      z = Sigmoid(b)
    }"""
    collapsed(text, {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1)}, 2)


def test_the_half_of_a_gelu_stays_out():
    text = """(float[N,4,9,8] x) => (float[] y) {
      d = Div(x, root) e = Erf(d) f = Add(e, one) g = Mul(x, f) h = Mul(g, half)
      a = Conv <pads = [1,1,1,1]> (h, w3) b = BN(h, n) s = Add(a, b) y = Relu(s)
    }"""
    scalars = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    result = fold(build(text, {"w3": (4, 4, 3, 3), "n": Norm(4), **scalars}), collapse="bn")
    assert result.count("Conv") == 1 and result.count("Mul") == 2


def test_modes():
    text = sum_of("Conv <pads = [1,1,1,1]> (x, w3)", "Conv(x, w1)")
    weights = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1)}
    assert fold(build(text, weights), collapse="bn").count("Conv") == 2
    assert fold(build(text, weights), collapse="all").count("Conv") == 1
    text = sum_of("Conv <pads = [1,1,1,1]> (x, w3)", "Conv(x, w1)", "BN(x, n)")
    result = fold(build(text, {**weights, "n": positive(4)}), collapse="none")
    assert result.count("Conv") == 2


def test_skip_leaves_a_region_alone():
    text = sum_of("Conv <pads = [1,1,1,1]> (x, w3)", "Conv(x, w1)", "BN(x, n)")
    model = build(text, {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "n": Norm(4)})
    (norm,) = [n for n in nodes(model.graph) if n.op_type == "BatchNormalization"]
    norm.name = "keep"
    result = fold(model, skip=["keep"])
    assert result.count("BatchNormalization") == 1


def test_the_plan_says_what_collapses_and_what_does_not():
    text = sum_of("Conv <pads = [1,1,1,1]> (x, w3)", "Conv(x, w1)", "BN(x, n)")
    model = build(text, {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "n": Norm(4)})
    (entry,) = fold(model, collapse="bn").plan.folded
    assert entry.how == "collapsed" and entry.kind == "BatchNormalization"
    assert entry.into == ("p0",)


def read_lines(lines, value):
    """The lines that lead to a value."""
    wanted, kept = {value}, []
    for line in reversed(lines):
        name, call = line.split(" = ", 1)
        if name in wanted:
            wanted.update(re.findall(r"\bv\d+\b", call))
            kept.insert(0, line)
    return kept


@pytest.mark.parametrize("seed", range(40))
def test_random_regions(seed):
    """Sums and chains of random layers: the same numbers, and never more weights."""
    rng = np.random.default_rng(seed)
    lines, weights, values = [], {}, [("x", 4)]

    def layer(value, inputs, out):
        k = int(rng.choice([1, 1, 3, 2]))
        group = int(rng.choice([1, 1, 2])) if inputs % 2 == 0 and out % 2 == 0 else 1
        low = int(rng.integers(0, k))
        name = f"w{len(lines)}"
        weights[name] = (out, inputs // group, k, k)
        bias = ""
        if rng.random() < 0.3:
            weights[f"b{len(lines)}"], bias = (out,), f", b{len(lines)}"
        pads = [low, low, k - 1 - low, k - 1 - low]
        attrs = f"pads = {pads}, group = {group}"
        lines.append(f"v{len(lines)} = Conv <{attrs}> ({value}, {name}{bias})")
        return f"v{len(lines) - 1}"

    for _ in range(int(rng.integers(3, 8))):
        value, n = values[int(rng.integers(max(0, len(values) - 3), len(values)))]
        what = rng.random()
        same = [v for v, m in values if m == n and v != value]
        if what < 0.55:
            values.append((layer(value, n, 4), 4))
        elif what < 0.75:
            weights[f"n{len(lines)}"] = Norm(n)
            lines.append(f"v{len(lines)} = BN({value}, n{len(lines)})")
            values.append((f"v{len(lines) - 1}", n))
        elif same:
            lines.append(f"v{len(lines)} = Add({value}, {same[int(rng.integers(len(same)))]})")
            values.append((f"v{len(lines) - 1}", n))
    value = values[-1][0]
    if value == "x":
        value = layer("x", 4, 4)
    lines = read_lines(lines, value)
    text = f"(float[N,4,7,6] x) => (float[N,4,7,6] y) {{ {' '.join(lines)} y = Relu({value}) }}"
    used = {k: v for k, v in weights.items() if re.search(rf"\b{k}\b", text)}
    model = build(text, used, seed=seed)
    result = fold(model, 1e-4, collapse="all")
    assert_same(model, result.after, 1e-4)
    size = [sum(np.prod(t.dims, dtype=int) for t in m.graph.initializer)
            for m in (result.before, result.after)]  # fmt: skip
    assert size[1] <= size[0] + 8 * len(lines)


def test_work_counts_by_how_often_it_is_done():
    """36 weights take the place of 36, but the first 18 of those were for every place."""
    text = """(float[N,6,8,8] x) => (float[] y)
      { a = Conv(x, u)  s = Conv <strides = [2,2]> (a, w)  y = Relu(s) }"""
    collapsed(text, {"u": (3, 6, 1, 1), "w": (6, 3, 1, 1)}, 1)
