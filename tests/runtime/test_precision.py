from __future__ import annotations

import json

import numpy as np
import pytest

from bnpass.frontends.onnx.half import to_half
from bnpass.runtime.precision import HOPELESS, derived, precision
from bnpass.runtime.verify import verify
from tests.runtime.conftest import edit


def test_worse_conditioning_and_coarser_types_widen_the_tolerance():
    good, bad = derived("float16", [1.0, 1.0]), derived("float16", [1.0, 30.0])
    assert bad.rtol > 10 * good.rtol
    assert derived("bfloat16", [1.0]).rtol == pytest.approx(8 * derived("float16", [1.0]).rtol)
    assert derived("float16", [0.0] * 4).rtol == pytest.approx(2 * derived("float16", [0.0]).rtol)


def test_layers_are_measured_and_reported(convnet):
    found = precision(convnet, "float16")
    assert {c.node for c in found.conditioning} == {"conv1", "conv2", "y"}
    assert all(c.expected == pytest.approx(6e-7 * 2**13 * c.ratio) for c in found.conditioning)
    assert all(0 <= c.rms <= c.ratio for c in found.conditioning)
    assert found.rule.dtype == "float16" and found.notes == []
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_hopeless_layer_is_named(convnet):
    shifted = edit(convnet, "t1", lambda t: t + np.float32(1e4))
    found = precision(shifted, "bfloat16")
    assert found.rule.rtol == HOPELESS
    assert "'y'" in found.notes[0] and found.conditioning[1].node == "conv2"


@pytest.mark.parametrize("shift", [0, 3, 30])
@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_the_tolerance_holds_what_narrowing_costs(convnet, to, shift):
    shifted = edit(convnet, "t1", lambda t: t + np.float32(shift))
    rule = precision(shifted, to).rule
    narrow = to_half(edit(shifted, "t1", lambda t: t), to).model
    report = verify(shifted, narrow, rtol=rule.rtol, atol=rule.atol)
    assert report.passed
    assert max(c.max_rel for c in report.outputs.values()) > 1e-5, "something was narrowed"
