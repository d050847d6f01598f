from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from bnpass.errors import InputError
from bnpass.runtime.determinism import determinism
from tests.runtime.conftest import text


def by_name(report):
    return {c.name: c for c in report.checks}


def test_plain_network_is_deterministic_in_all_ways(convnet):
    report = determinism(convnet)
    checks = by_name(report)
    assert checks["the same input twice"].equal is True
    assert checks["a fresh process"].equal is True
    assert {f"batches of {n}" for n in (1, 2, 3, 7, 64)} <= set(checks)
    assert "another batch position" in checks and "1 and 2 threads" in checks
    assert report.passed == all(c.equal is not False for c in report.checks)
    assert all(c.max_rel < 1e-5 for c in report.checks)
    json.dumps(report.to_dict(), allow_nan=False)


def test_bn_in_training_mode_fails_at_once_and_says_why(convnet):
    node = convnet.graph.node[1]
    node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    node.output.extend(["unused_mean", "unused_var"])
    report = determinism(convnet)
    assert not report.passed and not report.checks
    assert "'bn1' is in training mode" in report.reasons[0]
    assert "depends on the others" in report.reasons[0]


def test_spelt_out_batch_statistics_are_found_by_running():
    model = text(
        """ g (float[N, 4] x) => (float[N, 4] y) {
            m = ReduceMean<axes = [0], keepdims = 1>(x)
            y = Sub(x, m)
        }"""
    )
    report = determinism(model, fresh_process=False)
    checks = by_name(report)
    assert not report.passed
    assert checks["the same input twice"].equal is True
    assert checks["batches of 1"].equal is False and checks["batches of 1"].max_abs > 0.1


def test_random_numbers():
    model = text(" g (float[N, 4] x) => (float[N, 4] y) { r = RandomNormalLike(x) y = Add(x, r) }")
    report = determinism(model, fresh_process=False)
    assert not report.passed
    assert by_name(report)["the same input twice"].equal is False
    assert "draws random numbers" in report.reasons[0]


def test_fixed_batch_and_given_inputs(tmp_path):
    model = text(" g (float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }")
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    report = determinism(path, np.ones((2, 4), np.float32))
    assert report.passed
    assert by_name(report)["batch composition"].equal is None
    with pytest.raises(InputError, match="wants shape"):
        determinism(path, np.ones((3, 4), np.float32))


def test_too_few_samples_are_said(mlp):
    report = determinism(mlp, np.ones((5, 6), np.float32), fresh_process=False)
    assert by_name(report)["batches of 7"].reason == "only 5 samples were given"
    assert by_name(report)["batches of 3"].equal is not None
