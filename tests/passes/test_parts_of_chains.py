"""A chain of arithmetic that cannot leave as a whole leaves in parts, where that costs nothing."""

from __future__ import annotations

import pytest

from tests.helpers import assert_same, build, fold

STEPS = """(float[N, 4] a, float[N, 4] b) => (float[] y)
    {{ p = MatMul(a, W)  q = MatMul(b, W)  c = Concat <axis = 0> (p, q)  {chain}  y = Tanh(e) }}"""


@pytest.mark.parametrize(
    ("chain", "left"),
    [
        ("d = Mul(c, s)  e = Add(d, t)", {"Mul": 0, "Add": 1}),
        ("d = Add(c, t)  e = Mul(d, s)", {"Mul": 0, "Add": 1}),
        ("d = Div(c, s)  e = Sub(d, t)", {"Div": 0, "Sub": 1}),
        ("d = Sub(c, t)  f = Mul(d, s)  e = Add(f, t)", {"Mul": 0}),
    ],
)
def test_a_scale_leaves_where_its_shift_would_cost_more(chain: str, left: dict[str, int]) -> None:
    """Two layers on one weight would need an Add each: the one Add behind them stays."""
    model = build(STEPS.format(chain=chain), {"W": (4, 6), "s": (6,), "t": (6,)})
    result = fold(model)
    assert {kind: result.count(kind) for kind in left} == left
    assert_same(model, result.after)


def test_with_biases_of_their_own_all_leaves() -> None:
    text = STEPS.replace("MatMul(a, W)", "Gemm(a, W, u)").replace("MatMul(b, W)", "Gemm(b, W, u)")
    model = build(
        text.format(chain="d = Mul(c, s)  e = Add(d, t)"),
        {"W": (4, 6), "u": (6,), "s": (6,), "t": (6,)},
    )
    result = fold(model)
    assert result.count("Mul", "Add") == 0
