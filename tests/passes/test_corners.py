"""Corners that a slightly wrong planner would still get right elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from bnpass.frontends.onnx.folding import fold_model
from bnpass.frontends.onnx.inserting import InsertOptions, insert_model
from bnpass.passes.sites import Policy
from tests.helpers import Norm, assert_folds, assert_same, assert_stays, build

IMAGE = "(float[N,3,8,8] x) => (float[] y)"


def test_a_shift_does_not_pass_averages_whose_last_windows_hang_over():
    """ceil_mode lets windows reach beyond the input, and count_include_pad counts what is there."""
    text = IMAGE + """ {
      c = Conv(x, w)
      p = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1,
                       count_include_pad = COUNT> (c)
      y = BN(p, n)
    }"""
    weights = {"w": (4, 3, 1, 1), "n": Norm(4)}
    assert_folds(build(text.replace("COUNT", "0"), weights))
    counted = build(text.replace("COUNT", "1"), weights)
    assert_stays(counted, "averages that count the zero padding")


def test_a_bias_in_front_of_a_dropout_is_kept():
    """In training it is no constant behind it, so the BatchNorm behind does not subsume it."""
    text = """(float[N,6] x) => (float[] y) {
      a = Gemm(x, u, a0)
      d = Dropout(a)
      b = Gemm(x, v, b0)
      s = Concat <axis = 1> (d, b)
      r = Relu(s)
      y = Gemm(r, w)
    }"""
    model = build(text, {"u": (6, 5), "a0": (5,), "v": (6, 5), "b0": (5,), "w": (10, 3)})
    (site,) = insert_model(model, InsertOptions(Policy())).plan.sites
    assert (site.value, site.dropped) == ("s", ("b",))


def test_an_add_behind_a_matmul_does_not_move_in_front_of_a_reshape():
    """It would cost an Add where one goes: the same work at another place."""
    text = """(float[N,2,6] x) => (float[] y) {
      a = MatMul(x, u)
      r = Reshape(a, s)
      b = Add(r, c)
      y = Relu(b)
    }"""
    model = build(text, {"u": (6, 4), "s": [-1, 4], "c": (4,)})
    done = fold_model(model)
    assert done.model == model
    assert done.plan.entries == []
    (entry,) = done.plan.arithmetic
    assert "nothing would be saved: it would become another operator elsewhere" in entry.reason


def test_parts_of_a_split_that_nobody_reads_are_said_to_change():
    text = IMAGE + """ {
      c = Conv(x, w)
      a, b = Split <axis = 1> (c, half)
      n = Mul(a, k)
      y = Relu(n)
    }"""
    k = np.full((2, 1, 1), 3.0, np.float32)
    done = fold_model(build(text, {"w": (4, 3, 1, 1), "half": [2, 2], "k": k}))
    assert done.plan.folded
    assert {"a", "b", "c"} <= done.changed
    assert {float(done.correspondences.of(name).old_map.scale.max()) for name in "abc"} == {3.0}


@pytest.mark.parametrize("shift", [False, True])
def test_a_map_that_has_taken_another_axis_in_is_folded_again(shift):
    """What the first chain leaves in the second one makes it two chains: a second round."""
    add = "b = Add(a, t)" if shift else "b = Identity(a)"
    text = f"""(float[4,3,2,2] x) => (float[] y) {{
      a = Mul(x, k)
      {add}
      c = Sub(b, m)
      d = Mul(c, g)
      e = Mul(d, f)
      y = Elu(e)
    }}"""
    weights = {"k": (3, 1, 1), "m": (4, 1, 1, 1), "g": (4, 1, 1, 1), "f": (4, 1, 1, 1)}
    model = build(text, weights | ({"t": (3, 1, 1)} if shift else {}))
    done = assert_same_after_fold(model)
    kinds = [n.op_type for n in done.graph.node if n.op_type != "Identity"]
    assert kinds == ["Sub", "Mul", "Elu"]


def assert_same_after_fold(model):
    """The folded model, whose outputs are those of the model."""
    folded = fold_model(model).model
    assert_same(model, folded)
    return folded
