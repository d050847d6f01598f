"""Constants that a region computes: sizes keep their signs, casts their roundings."""

from __future__ import annotations

import numpy as np
import pytest

import bnpass
from tests.helpers import Norm, build

PADS = ["Neg(inner)", "Sub(none, inner)", "Min(none, outer)", "Mul(inner, less)"]


@pytest.mark.parametrize("made", PADS)
def test_pads_that_are_computed(made: str) -> None:
    model = build(
        f"""(float[N, 3, 8, 8] x) => (float[] y)
        {{ c = Conv(x, W)  k = {made}  p = Concat <axis = 0> (none, k)  q = Pad(c, p)
           d = BN(q, n)  y = Relu(d) }}""",
        {"W": (4, 3, 3, 3), "n": Norm(4), "none": [0, 0, 0, 0], "inner": [0, 0, 1, 1],
         "outer": [0, 0, -1, -1], "less": [-1, -1, -1, -1]},
    )  # fmt: skip
    folded = bnpass.fold(model)
    assert all(node.op_type != "BatchNormalization" for node in folded.graph.node)


def test_parameters_that_are_cast_from_double() -> None:
    """Their rounding to float32 is what the file computes, and no error of the fold."""
    rng = np.random.default_rng(0)
    numbers = {k: rng.uniform(0.5, 1.5, 4) for k in ("g", "b", "m", "v")}
    casts = "  ".join(f"{k}32 = Cast <to = 1> ({k})" for k in numbers)
    model = build(
        f"""(float[N, 3, 8, 8] x) => (float[] y)
        {{ c = Conv(x, W)  {casts}
           d = BatchNormalization(c, g32, b32, m32, v32)  y = Relu(d) }}""",
        {"W": (4, 3, 3, 3), **numbers},
    )
    folded = bnpass.fold(model)
    assert all(node.op_type != "BatchNormalization" for node in folded.graph.node)


CHAINS = {
    "two norms": "a = BN(K, m)  r = Relu(a)  k = BN(r, o)",
    "a layer and a norm": "a = Conv <pads = [1, 1, 1, 1]> (K, V)  k = BN(a, o)",
    "a norm and a layer": "a = BN(K, m)  k = Conv <pads = [1, 1, 1, 1]> (a, V)",
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_constants(name: str) -> None:
    """Each step rounds in the file, and nothing that the fold does is to blame for that."""
    model = build(
        f"""(float[N, 3, 6, 6] x) => (float[] y)
        {{ c = Conv <pads = [1, 1, 1, 1]> (x, W)  {CHAINS[name]}  s = Add(c, k)  y = Relu(s) }}""",
        {"W": (4, 3, 3, 3), "K": (1, 4, 6, 6), "V": (4, 4, 3, 3), "m": Norm(4), "o": Norm(4)},
    )
    folded = bnpass.fold(model)
    assert all(node.op_type != "BatchNormalization" for node in folded.graph.node)
