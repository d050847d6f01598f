"""Question 1: every edit on its own region. Wrong ones are caught by name, right ones pass."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnpass.frontends.onnx.folding import fold_model
from bnpass.ir.affine import Map
from bnpass.ir.correspondence import Correspondence, Correspondences
from bnpass.onnx_model.model import OnnxModel
from bnpass.verdict.proof import UNTOUCHED, prove
from tests.fuzz.wrong_folds import right, wrong
from tests.runtime.conftest import text

RNG = np.random.default_rng(3)


def floats(*shape, low=-1.0, high=1.0):
    return RNG.uniform(low, high, shape).astype(np.float32)


def norm(n, prefix="n"):
    arrays = {"g": floats(n), "b": floats(n), "m": floats(n), "v": floats(n, low=0.5, high=2)}
    return {f"{prefix}_{k}": a for k, a in arrays.items()}


def edited(model, name, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    return copy


def answer(old, new, pairs=None):
    return prove(OnnxModel(old), OnnxModel(new), pairs or UNTOUCHED)


@pytest.mark.parametrize("number", [*range(36), 100, 105, 110])
def test_wrong_folds_are_caught_with_the_right_node(number):
    found = wrong(number)
    assert found.caught and found.named, (found.name, found.report.failures)


@pytest.mark.parametrize("number", range(24))
def test_right_folds_in_badly_conditioned_networks_pass(number):
    found = right(number)
    assert not found.caught and not found.report.open, (found.name, found.report.failures)
    assert found.report.proven


CONV = text(
    """ g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, W, c)
        n = BatchNormalization(a, n_g, n_b, n_m, n_v)
        y = Relu(n)
    }""",
    W=floats(4, 3, 3, 3), c=floats(4), **norm(4),
)  # fmt: skip


def test_a_model_is_itself_without_any_work():
    found = answer(CONV, CONV)
    assert found.passed and found.proven == 0


def test_a_claim_that_is_wrong_fails_and_never_helps():
    """Correspondences are believed by nobody: a map that nothing computes is a failure."""
    lie = Map.along(1, 4, np.full(4, 2.0), np.zeros(4))
    pairs = Correspondences({"y": Correspondence("y", "y", lie, None)})
    assert not answer(CONV, CONV, pairs).passed  # an output has to be the same numbers
    # In the middle a wrong claim alone is no wrong edit: the region reaches through the value.
    pairs = Correspondences({"a": Correspondence("a", "a", lie, None)})
    assert answer(CONV, CONV, pairs).passed


def test_a_right_fold_passes_without_any_claim():
    """Names alone: the region then reaches from the layer through the Relu."""
    folded = fold_model(CONV).model
    found = answer(CONV, folded)
    assert found.passed and found.proven
    wrong_one = edited(folded, folded.graph.node[0].input[1], lambda w: w * np.float32(1.001))
    assert not answer(CONV, wrong_one).passed


def test_a_lost_output_and_a_lost_nonlinearity_are_failures():
    other = onnx.ModelProto()
    other.CopyFrom(CONV)
    other.graph.node[-1].op_type = "Identity"
    found = answer(CONV, other)
    assert [p.value for p in found.failures] == ["y"]
    two = text("g (float[2] x) => (float[2] a, float[2] b) { a = Neg(x) b = Abs(x) }")
    swapped = text("g (float[2] x) => (float[2] a, float[2] b) { b = Neg(x) a = Abs(x) }")
    assert {p.value for p in answer(two, swapped).failures} == {"a", "b"}


def test_a_fold_inside_of_a_branch():
    model = text(
        """ g (float[N, 3, 6, 6] x, bool c) => (float[N, 4, 6, 6] y) {
            y = If(c) <then_branch = t () => (float[N, 4, 6, 6] p) {
                        a = Conv<pads = [1, 1, 1, 1]>(x, W)
                        n = BatchNormalization(a, n_g, n_b, n_m, n_v)
                        p = Relu(n) },
                       else_branch = e () => (float[N, 4, 6, 6] q) {
                        q = Conv<pads = [1, 1, 1, 1]>(x, W) }>
        }""",
        W=floats(4, 3, 3, 3), **norm(4),
    )  # fmt: skip
    folded = fold_model(model)
    assert folded.plan.folded
    found = answer(model, folded.model, folded.correspondences)
    assert found.passed and found.proven
    body = folded.model.graph.node[0].attribute[0].g
    for tensor in [*folded.model.graph.initializer, *body.initializer]:
        if list(tensor.dims) == [4, 3, 3, 3]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    found = answer(model, folded.model, folded.correspondences)
    assert [p.node for p in found.failures] == ["y/a"] or not found.passed


def test_every_row_of_a_table_is_tested():
    model = text(
        """ g (int64[N, 2] i) => (float[N, 2, 4] y) { e = Gather(T, i) y = Mul(e, s) }""",
        T=floats(300, 4), s=np.array([2, 4, 8, 16], np.float32),
    )  # fmt: skip
    folded = text("g (int64[N, 2] i) => (float[N, 2, 4] y) { y = Gather(T, i) }")
    table = numpy_helper.to_array(model.graph.initializer[0]) * np.array([2, 4, 8, 16], np.float32)
    folded.graph.initializer.append(numpy_helper.from_array(table, "T"))
    assert answer(model, folded).passed
    table[299, 3] *= np.float32(1.001)
    folded.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "T"))
    assert not answer(model, folded).passed


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(kind):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    body = f""" g (float[T, N, 3] x) => (float[T, 1, N, 5] y) {{
        n = Mul(x, s)
        y = {kind}<hidden_size = 5>(n, W, R)
    }}"""
    w, r, s = floats(1, gates * 5, 3), floats(1, gates * 5, 5), floats(3)
    model = text(body, W=w, R=r, s=s)
    folded = text(body.replace("n = Mul(x, s)", "").replace("(n, W", "(x, W"), W=w * s, R=r)
    assert answer(model, folded).passed
    off = w * s
    off[0, 2, 1] *= np.float32(1.01)
    other = text(body.replace("n = Mul(x, s)", "").replace("(n, W", "(x, W"), W=off, R=r)
    found = answer(model, other)
    assert not found.passed and found.failures[0].value == "y"


def test_what_cannot_be_evaluated_is_named_and_left_open():
    body = """ g (float[1, 1, 4, 4] x, float[1, 4, 4, 2] p) => (float[1, 1, 4, 4] y) {
        n = Mul(x, s)
        y = GridSample(n, p)
    }"""
    found = answer(text(body, s=floats(1)), text(body, s=floats(1)))
    assert found.passed and not found.proven
    assert [(p.value, "GridSample" in p.reason) for p in found.open] == [("y", True)]
    # Where a plan says that n is the same numbers, it is that claim which is wrong.
    found = answer(text(body, s=floats(1)), text(body, s=floats(1)), Correspondences())
    assert [p.node for p in found.failures] == ["n"]


def test_values_behind_nodes_that_are_gone():
    """One value of the result stands for several of the original."""
    model = text(
        """ g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z) {
            a = Conv<pads = [1, 1, 1, 1]>(x, W)
            i = Identity(a)
            n = BatchNormalization(i, n_g, n_b, n_m, n_v)
            j = Identity(n)
            y = Relu(j)
            z = Sigmoid(n)
        }""",
        W=floats(4, 3, 3, 3), **norm(4),
    )  # fmt: skip
    folded = fold_model(model)
    found = answer(model, folded.model, folded.correspondences)
    assert folded.plan.folded and found.passed and found.proven


def deep(blocks, fault=None):
    """Blocks of one shape, enough to be evaluated together; one of them made wrong."""
    lines, weights, value = [], {}, "x"
    for k in range(blocks):
        kind = "group = 2, pads = [1, 1, 1, 1]" if k % 2 else "pads = [1, 1, 1, 1]"
        lines.append(f"a{k} = Conv<{kind}>({value}, W{k}, c{k})")
        lines.append(f"n{k} = BatchNormalization(a{k}, n{k}_g, n{k}_b, n{k}_m, n{k}_v)")
        lines.append(f"r{k} = Relu(n{k})")
        value = f"r{k}"
        weights.update({f"W{k}": floats(4, 2 if k % 2 else 4, 3, 3), f"c{k}": floats(4)})
        weights.update(norm(4, f"n{k}"))
    lines += [f"f = Flatten({value})", "y = Gemm(f, G)"]
    weights["G"] = floats(4 * 25, 3)
    return text("g (float[N, 4, 5, 5] x) => (float[N, 3] y) {" + " ".join(lines) + "}", **weights)


def test_regions_of_one_form_together_say_the_same(monkeypatch):
    from bnpass.verdict import proof

    model = deep(12)
    done = fold_model(model)
    together = answer(model, done.model, done.correspondences)
    monkeypatch.setattr(proof, "_FEW", 1000)
    alone = answer(model, done.model, done.correspondences)
    assert together.proven == alone.proven == 12 and together.passed and alone.passed
    assert 0.3 * alone.worst < together.worst < 3 * alone.worst


@pytest.mark.parametrize("block", [3, 8])
def test_the_wrong_one_of_many_is_named(block):
    model = deep(12)
    done = fold_model(model)
    node = next(n for n in done.model.graph.node if n.output[0] == f"a{block}")
    wrong_one = edited(done.model, node.input[1], lambda w: w + (np.abs(w) == np.abs(w).max()) * w)
    found = answer(model, wrong_one, done.correspondences)
    assert [p.node for p in found.failures] == [f"a{block}"]
    assert found.failures[0].channel is not None


@pytest.mark.parametrize("transposed", [0, 1])
def test_large_weights_are_proven_in_blocks(monkeypatch, tmp_path, transposed):
    """Data that lies in another file is read in blocks of columns; the verdict is the same."""
    from bnpass.verdict import coefficients, region_run
    from bnpass.verdict.evaluator import linear, run

    monkeypatch.setattr(coefficients, "TOGETHER", 20)
    for module in (linear, region_run, run):
        monkeypatch.setattr(module, "LARGE", 50)
    w = floats(7, 30) if transposed else floats(30, 7)
    body = f""" g (float[N, 30] x) => (float[N, 7] y) {{
        a = Gemm<transB = {transposed}>(x, W, c)
        n = BatchNormalization(a, n_g, n_b, n_m, n_v)
        y = Relu(n)
    }}"""
    model = text(body, W=w, c=floats(7), **norm(7))
    done = fold_model(model)
    assert answer(model, done.model, done.correspondences).passed
    weight = done.model.graph.node[0].input[1]
    wrong_one = edited(done.model, weight, lambda a: a * (1 + 1e-3 * (a == a.max())).astype("f"))
    found = answer(model, wrong_one, done.correspondences)
    assert [p.node for p in found.failures] == ["a"]
    path = tmp_path / "w.onnx"
    onnx.save(wrong_one, path, save_as_external_data=True, size_threshold=0, location="w.data")
    light = OnnxModel(onnx.load(path, load_external_data=False), tmp_path)
    found = prove(OnnxModel(model), light, done.correspondences)
    assert [p.node for p in found.failures] == ["a"]


def test_a_saturated_nonlinearity_hides_nothing():
    """Behind a Tanh that gives 1 everywhere the wrong layer cannot be seen: its own claim fails."""
    model = text(
        """ g (float[N, 3] x) => (float[N, 4] y) {
            a = Gemm(x, W, c)
            n = Mul(a, s)
            y = Tanh(n)
        }""",
        W=floats(3, 4), c=np.full(4, 1e4, np.float32), s=floats(4, low=1, high=2),
    )  # fmt: skip
    done = fold_model(model)
    assert done.plan.folded
    assert answer(model, done.model, done.correspondences).passed
    weight = done.model.graph.node[0].input[1]
    wrong_one = edited(done.model, weight, lambda w: w * np.float32(1.01))
    found = answer(model, wrong_one, done.correspondences)
    assert [p.node for p in found.failures] == ["a"]


def test_a_body_is_proven_by_what_the_fold_says_of_it():
    """A Tanh that is saturated hides a wrong layer in front of it, unless its own value is told."""
    model = text(
        """ g (float[N, 3] x, bool c) => (float[N, 4] y) {
            y = If(c) <then_branch = t () => (float[N, 4] p) {
                        a = Gemm(x, W, k)
                        n = Mul(a, s)
                        p = Tanh(n) },
                       else_branch = e () => (float[N, 4] q) { q = Gemm(x, W) }>
        }""",
        W=floats(3, 4), k=np.full(4, 1e4, np.float32), s=floats(4, low=1, high=2),
    )  # fmt: skip
    done = fold_model(model)
    assert done.plan.folded and done.inside
    found = answer(model, done.model, done.pairs)
    assert found.passed and found.proven and not found.open
    body = done.model.graph.node[0].attribute[0].g
    weight = body.node[0].input[1]
    for graph in (done.model.graph, body):
        for tensor in graph.initializer:
            if tensor.name == weight:
                off = numpy_helper.to_array(tensor) * np.float32(1.01)
                tensor.CopyFrom(numpy_helper.from_array(off, weight))
    found = answer(model, done.model, done.pairs)
    assert [p.node for p in found.failures] == ["y/a"]
