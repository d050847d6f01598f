"""What bnpass.inspect says about the statistics of BatchNormalizations."""

from __future__ import annotations

import numpy as np
import pytest

import bnpass
from tests.helpers import Norm, build

TEXT = """({kind}[N,4,3,3] x) => ({kind}[] y) {{
  t = Tanh(x)
  [norm] y = BN(t, n)
}}"""


def findings(kind="float", dtype=np.float32, text=TEXT, **changed):
    arrays = Norm(4, "positive").arrays("n", np.random.default_rng(0))
    arrays |= {f"n_{key}": np.array(a) for key, a in changed.items()}
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}
    found = bnpass.inspect(build(text.format(kind=kind), arrays)).findings
    return [(f.node, f.level, f.message, f.channels) for f in found]


def test_good_statistics_are_not_worth_a_word():
    assert findings() == []


@pytest.mark.parametrize(
    ("changed", "level", "message", "channels"),
    [
        ({"v": [1, np.nan, 2, np.inf]}, "error", "NaN or infinite", 2),
        ({"b": [0, np.nan, 0, 0]}, "error", "NaN or infinite", 1),
        ({"v": [1, -1, 2, -3]}, "error", "not positive", 2),
        ({"v": [1, -1e-6, 2, 3]}, "warning", "variance is negative", 1),
        ({"v": [1, 0, 2, 3]}, "warning", "variance is zero", 1),
        ({"v": [1, 1e-7, 1e-6, 3]}, "note", "below epsilon", 2),
        ({"g": [1, 0, -1, 2]}, "note", "gamma is zero", 1),
        ({"m": [0] * 4, "v": [1] * 4}, "warning", "never trained or calibrated", 4),
    ],
)
def test_statistics_that_are_not_good(changed, level, message, channels):
    (found,) = findings(**changed)
    assert found[:2] == ("norm", level)
    assert message in found[2]
    assert found[3] == channels


def test_a_scale_beyond_the_type():
    (note, error) = findings("float16", np.float16, g=[6e4, 1, 1, 1], v=[6e-8, 1, 1, 2])
    assert "below epsilon" in note[2]
    assert error == ("norm", "error", "gamma/sqrt(var+eps) overflows the type", 1)
    assert [f[1] for f in findings(g=[6e4, 1, 1, 1], v=[6e-8, 1, 1, 2])] == ["note"]


def test_a_norm_in_training_mode():
    training = "BatchNormalization <training_mode = 1> (t, n_g, n_b, n_m, n_v)"
    text = TEXT.replace("BN(t, n)", training).replace("[] y", "[N,4,3,3] y")
    text = text.replace("] y = ", "] y, mean, var = ")
    (found,) = findings(text=text)
    assert found[1] == "warning"
    assert "training_mode" in found[2]


def test_a_bias_in_front_of_a_norm():
    text = """(float[N,3,5,5] x) => (float[] y) {
      [conv] c = Conv(x, w, b)
      p = AveragePool <kernel_shape = [2,2]> (c)
      [norm] y = BN(p, n)
    }"""
    weights = {"w": (4, 3, 3, 3), "b": (4,), "n": Norm(4, "positive")}
    (found,) = bnpass.inspect(build(text, weights)).findings
    assert (found.node, found.level) == ("conv", "note")
    assert "dead weight" in found.message
    assert "'norm'" in found.message
