"""Weights that several layers read: copied once for each map, where there is room for it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnpass
from tests.helpers import Norm, Result, Weights, assert_folds, assert_same, build
from tests.helpers_insert import insert


def unrolled(steps: int, size: int, *, each: bool, kind: str = "Gemm") -> onnx.ModelProto:
    """One weight at every step; behind it, one BN for all of them or one for each."""
    layer = {"Gemm": "Gemm(r{k}, W, b)", "MatMul": "MatMul(r{k}, W)"}[kind]
    lines, ends = [], []
    for k in range(steps):
        norm = f"n{k}" if each else "n"
        lines.append(f"r{k} = Relu(x{k})  c{k} = {layer.format(k=k)}  d{k} = BN(c{k}, {norm})")
        lines.append(f"y{k} = Tanh(d{k})")
        ends.append(f"float[] y{k}")
    inputs = ", ".join(f"float[N, {size}] x{k}" for k in range(steps))
    weights: Weights = {"W": (size, size), "b": (size,)}
    if kind == "MatMul":
        del weights["b"]
    norms = {f"n{k}" if each else "n": Norm(size) for k in range(steps if each else 1)}
    text = f"({inputs}) => ({', '.join(ends)}) {{ {'  '.join(lines)} }}"
    return build(text, {**weights, **norms})


def bytes_of(model: onnx.ModelProto) -> int:
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer)


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
@pytest.mark.parametrize("size", [16, 512])
def test_equal_maps_share_one_new_weight(kind: str, size: int) -> None:
    """Small weights, and those that are worked out in pieces."""
    model = unrolled(6, size, each=False, kind=kind)
    result = assert_folds(model, max_growth=1.0, rtol=1e-4)
    assert bytes_of(result.after) <= bytes_of(model) + 6 * 4 * size  # shifts behind a MatMul
    shared = {node.input[1] for node in result.after.graph.node if node.op_type == kind}
    assert len(shared) == 1


def test_two_maps_make_two_weights() -> None:
    """Three readers each: the old one has no reader left, so one weight more is stored."""
    size = 64
    lines = "  ".join(
        f"c{k} = MatMul(x{k}, W)  d{k} = BN(c{k}, n{k % 2})  y{k} = Tanh(d{k})" for k in range(6)
    )
    inputs = ", ".join(f"float[N, {size}] x{k}" for k in range(6))
    outputs = ", ".join(f"float[] y{k}" for k in range(6))
    model = build(
        f"({inputs}) => ({outputs}) {{ {lines} }}",
        {"W": (size, size), "n0": Norm(size), "n1": Norm(size)},
    )
    result = assert_folds(model)
    shared = {node.input[1] for node in result.after.graph.node if node.op_type == "MatMul"}
    assert len(shared) == 2
    assert bytes_of(result.after) < bytes_of(model) + 1.2 * size * size * 4


def test_a_reader_without_a_map_keeps_the_old_weight() -> None:
    model = build(
        """(float[N, 32] x) => (float[] y, float[] z)
        { a = MatMul(x, W)  d = BN(a, n)  t = Tanh(d)  b = MatMul(t, W)  e = BN(b, n)
          y = Tanh(e)  z = MatMul(t, W) }""",
        {"W": (32, 32), "n": Norm(32)},
    )
    result = assert_folds(model)
    products = [n.input[1] for n in result.after.graph.node if n.op_type == "MatMul"]
    assert products[0] == products[1] != products[2] == "W"


def folded(model: onnx.ModelProto, most: float) -> Result:
    """Not folded twice: a second fold has the room of a larger file."""
    after = bnpass.fold(model, verify=False, max_growth=most)
    onnx.checker.check_model(after, full_check=True)
    assert_same(model, after, 1e-4)
    return Result(model, after, bnpass.fold(model, plan_only=True, max_growth=most))


def test_what_grows_stays_alone_with_what_would_allow_it() -> None:
    """Of eight BN behind one weight some stay; the one behind a weight of its own leaves."""
    shared = unrolled(8, 128, each=True)
    alone = build(
        "(float[N, 128] a) => (float[] z) { m = MatMul(a, V)  o = BN(m, p)  z = Tanh(o) }",
        {"V": (128, 8), "p": Norm(8)},
    )
    for part in ("node", "initializer", "input", "output"):
        getattr(shared.graph, part).extend(getattr(alone.graph, part))
    result = folded(shared, 4.0)
    stays = {e.node for e in result.plan.refused}
    assert 0 < len(stays) < 8
    assert bytes_of(result.after) <= 4 * bytes_of(shared)
    assert "--max-growth" in result.reasons
    assert "KiB more, as others read" in result.reasons
    needed = float(result.reasons.split("--max-growth ")[1].split()[0])
    assert folded(shared, needed).count("BatchNormalization") == 0


def test_a_plan_says_the_same() -> None:
    model = unrolled(8, 128, each=True)
    plan = bnpass.fold(model, plan_only=True, max_growth=2.0)
    left = bnpass.fold(model, verify=False, max_growth=2.0)
    count = sum(n.op_type == "BatchNormalization" for n in left.graph.node)
    assert len(plan.refused) == count > 0


def test_weights_inside_a_body_are_shared_there() -> None:
    """Both readers in one branch; the other branch still reads the old weight."""
    model = build(
        """(float[N, 64] x, bool c) => (float[N, 64] y)
        { y = If (c) <
            then_branch = p () => (float[N, 64] u)
              { a = MatMul(x, W)  b = BN(a, n)  t = Tanh(b)  d = MatMul(t, W)  u = BN(d, n) },
            else_branch = q () => (float[N, 64] v) { v = MatMul(x, W) }
          > }""",
        {"W": (64, 64), "n": Norm(64)},
    )
    result = assert_folds(model)
    assert bytes_of(result.after) <= bytes_of(model)
    body = result.after.graph.node[0].attribute[0].g
    assert len({n.input[1] for n in body.node if n.op_type == "MatMul"}) == 1


def test_nothing_is_inserted_that_only_growth_could_fold() -> None:
    """Tanh behind a weight that eight steps share: each map would need a copy of its own."""
    steps = (f"c{k} = Gemm(x{k}, W)  t{k} = Tanh(c{k})  y{k} = Neg(t{k})" for k in range(8))
    lines = "  ".join(steps)
    inputs = ", ".join(f"float[N, 256] x{k}" for k in range(8))
    outputs = ", ".join(f"float[] y{k}" for k in range(8))
    model = build(f"({inputs}) => ({outputs}) {{ {lines} }}", {"W": (256, 256)})
    found = bnpass.insert(model, max_growth=1.0, last=True, plan_only=True)
    assert [site.nonlinearities for site in found.sites] == []
    assert all("--max-growth" in skip.reason for skip in found.skipped)
    assert len(found.skipped) == found.nonlinearities == 8
    some = bnpass.insert(model, last=True, plan_only=True)
    assert len(some.sites) == 3
    whole = insert(model, max_growth=8.0, last=True, foldable=False)
    assert len(whole.plan.sites) == 8


def test_equal_readers_of_a_weight_need_no_room() -> None:
    """One BN for a sum of four layers with one weight."""
    model = build(
        """(float[N, 256] a, float[N, 256] b) => (float[] y)
        { p = MatMul(a, W)  q = MatMul(b, W)  c = Concat <axis = 0> (p, q)  y = Tanh(c) }""",
        {"W": (256, 256)},
    )
    assert len(insert(model, max_growth=1.0, last=True).plan.sites) == 1


def test_numbers_are_those_of_the_plan() -> None:
    """Copies of a weight in float16 are rounded once each."""
    size = 32
    model = build(
        f"""(float16[N, {size}] x) => (float16[] y)
        {{ a = MatMul(x, W)  d = BN(a, n)  t = Tanh(d)  b = MatMul(t, W)  y = BN(b, n) }}""",
        {
            "W": np.random.default_rng(1).normal(size=(size, size)).astype(np.float16) / 8,
            "n": Norm(size, dtype=np.float16),
        },
    )
    assert_folds(model, rtol=2e-2)
