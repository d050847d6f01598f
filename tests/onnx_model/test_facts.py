"""What is counted of a model."""

from __future__ import annotations

import pytest

from bnpass.onnx_model.facts import facts_of, multiply_adds, parameters
from bnpass.onnx_model.model import OnnxModel
from tests.onnx_model.parsing import parsed

CASES = {
    "convolution": ("float[N, 4, 8, 8] x", "float[4, 2, 3, 3] w",
                    "y = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w)", 4 * 64 * 18),
    "strided": ("float[N, 4, 8, 8] x", "float[6, 4, 2, 2] w",
                "y = Conv <strides = [2, 2]> (x, w)", 6 * 16 * 16),
    "transposed": ("float[N, 4, 8, 8] x", "float[4, 6, 2, 2] w",
                   "y = ConvTranspose <strides = [2, 2]> (x, w)", 4 * 64 * 24),
    "gemm": ("float[N, 5] x", "float[3, 5] w", "y = Gemm <transB = 1> (x, w)", 15),
    "gemm transposed": ("float[5, N] x", "float[5, 3] w", "y = Gemm <transA = 1> (x, w)", 15),
    "product": ("float[N, 7, 5] x", "float[5, 3] w", "y = MatMul (x, w)", 7 * 15),
    "einsum": ("float[N, 7, 5] x", "float[5, 3] w",
               "y = Einsum <equation = \"bij,jk->bik\"> (x, w)", 7 * 15),
    "none": ("float[N, 5] x", "float[5] w", "y = Mul (x, w)", 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_multiply_adds_of_a_sample(case: str) -> None:
    port, weight, node, expected = CASES[case]
    model = parsed(port, weight, node)
    assert multiply_adds(OnnxModel.of(model)) == expected


def test_an_unknown_shape_is_not_guessed() -> None:
    model = parsed("float[] x", "float[5, 3] w", "y = MatMul (x, w)")
    assert multiply_adds(OnnxModel.of(model)) is None


def test_parameters_are_weights_wherever_they_stand() -> None:
    model = parsed(
        "float[N, 5] x", "float[5] w, int64[2] size, float scalar, int32[5] index",
        "k = Constant <value = float[2, 5] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}> ()\n"
        "h = Constant <value_float = 0.5> ()  t = Mul (x, w)  c = Cast <to = 9> (h)\n"
        "l = Constant <value_floats = [1.0, 2.0, 3.0]> ()\n"
        "y = If (c) <then_branch = a () => (float[N, 5] p) <float[5] v = {1, 1, 1, 1, 1}>"
        " { p = Add (t, v) }, else_branch = b () => (float[N, 5] q) { q = Identity (t) }>",
    )
    assert parameters(model) == 5 + 10 + 3 + 5
    assert facts_of(OnnxModel.of(model)).nodes == 8
