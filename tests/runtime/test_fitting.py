"""Sizes that a model leaves no choice for are found before a check gives up."""

from __future__ import annotations

import pytest

import bnpass
from tests.helpers import Norm, build

SIZES = {
    "flatten": (
        """(float[N, 3, H, W] x) => (float[] y)
        { c = Conv <pads = [1, 1, 1, 1]> (x, W0)  d = BN(c, n)  r = Relu(d)
          p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  f = Flatten(p)
          y = Gemm(f, W1) }""",
        {"W0": (4, 3, 3, 3), "n": Norm(4), "W1": (4 * 14 * 14, 2)},
    ),
    "reshape": (
        """(float[N, T, 8] x) => (float[] y)
        { f = Reshape(x, row)  m = MatMul(f, W)  d = BN(m, n)  y = Relu(d) }""",
        {"row": [0, -1], "W": (23 * 8, 5), "n": Norm(5)},
    ),
    "recurrent state": (
        """(float[T, N, F] x, float[1, N, K] h) => (float[] y)
        { a, b, c = LSTM <hidden_size = 6> (x, W, R, , , h)  s = Squeeze(a, one)
          f = Reshape(s, row)  m = MatMul(f, V)  d = BN(m, n)  y = Relu(d) }""",
        {"W": (1, 24, 80), "R": (1, 24, 6), "one": [1], "row": [-1, 6], "V": (6, 5), "n": Norm(5)},
    ),
    "two inputs": (
        """(float[N, T, 8] x, float[N, K] z) => (float[] y)
        { f = Reshape(x, row)  c = Concat <axis = 1> (f, z)  m = MatMul(c, W)  d = BN(m, n)
          y = Relu(d) }""",
        {"row": [0, 88], "W": (99, 5), "n": Norm(5)},
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_it_folds_and_is_checked(name: str) -> None:
    text, weights = SIZES[name]
    folded = bnpass.fold(build(text, weights))
    assert all(node.op_type != "BatchNormalization" for node in folded.graph.node)


def test_what_no_size_fits_is_still_refused() -> None:
    model = build(
        """(float[N, T, 8] x) => (float[] y)
        { f = Reshape(x, row)  m = MatMul(f, W)  d = BN(m, n)  y = Relu(d) }""",
        {"row": [0, -1], "W": (23, 5), "n": Norm(5)},
    )
    with pytest.raises(bnpass.BnpassError, match="no legal size found") as caught:
        bnpass.fold(model)
    assert "--dims" in caught.value.hint
