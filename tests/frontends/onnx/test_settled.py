"""BatchNormalizations of constants are evaluated; those that draw new statistics are not."""

from __future__ import annotations

import numpy as np

import bnpass
from tests.helpers import Norm, assert_folds, build, fold

ADDED = """(float[N, 3, 6, 6] x) => (float[] y)
    { k = BN(V, n)  c = Conv(x, W)  a = Add(c, k)  y = Tanh(a) }"""


def test_a_norm_of_a_constant_becomes_one() -> None:
    model = build(ADDED, {"W": (4, 3, 3, 3), "V": (1, 4, 4, 4), "n": Norm(4)})
    result = assert_folds(model)
    assert [e.how for e in result.plan.entries] == ["constant"]
    assert "V" not in result.weights()
    assert not any(name.startswith("n_") for name in result.weights())


def test_a_map_behind_it_goes_into_what_was_evaluated() -> None:
    """The BN behind the Add folds into the Conv and the constant, which takes the shift."""
    model = build(
        ADDED.replace("y = Tanh(a)", "d = BN(a, m)  y = Tanh(d)"),
        {"W": (4, 3, 3, 3), "V": (1, 4, 4, 4), "n": Norm(4), "m": Norm(4)},
    )
    result = assert_folds(model)
    assert result.count("Constant") + len(result.weights()) == 2


def test_a_weight_through_a_norm() -> None:
    """The kernel itself is normalised, as in weight standardisation that was exported."""
    model = build(
        """(float[N, 3, 6, 6] x) => (float[] y)
        { k = BN(V, n)  c = Conv(x, k)  d = BN(c, m)  y = Tanh(d) }""",
        {"V": (4, 3, 3, 3), "n": Norm(3), "m": Norm(4)},
    )
    assert_folds(model)


def test_it_may_be_left_out() -> None:
    model = build(ADDED, {"W": (4, 3, 3, 3), "V": (1, 4, 4, 4), "n": Norm(4)})
    assert fold(model, skip=["*"]).count("BatchNormalization") == 1


def test_new_statistics_are_never_settled() -> None:
    text = ADDED.replace("k = BN(V, n)", "k, r, s = BatchNormalization <training_mode = 1> "
                         "(V, n_g, n_b, n_m, n_v)")  # fmt: skip
    model = build(text, {"W": (4, 3, 3, 3), "V": (2, 4, 4, 4), "n": Norm(4)}, opset=17)
    after = bnpass.fold(model, verify=False)
    assert sum(n.op_type == "BatchNormalization" for n in after.graph.node) == 1


def test_its_numbers_are_those_of_the_formula() -> None:
    model = build(ADDED, {"W": (4, 3, 3, 3), "V": (1, 4, 4, 4), "n": Norm(4)})
    result = assert_folds(model)
    old = {t.name: np.frombuffer(t.raw_data, np.float32).astype(np.float64)
           for t in model.graph.initializer}  # fmt: skip
    shape = (1, 4, 1, 1)
    g, b, m, v = (old[f"n_{k}"].reshape(shape) for k in "gbmv")
    exact = (old["V"].reshape(1, 4, 4, 4) - m) / np.sqrt(v + 1e-5) * g + b
    (node,) = [n for n in result.after.graph.node if n.op_type == "Constant"]
    made = np.frombuffer(node.attribute[0].t.raw_data, np.float32).reshape(exact.shape)
    np.testing.assert_allclose(made, exact, rtol=1e-5, atol=1e-6)
