"""On a machine with CUDA: the provider really runs, agrees with the CPU, and is timed there."""

from __future__ import annotations

import numpy as np
import pytest

from bnpass.runtime.bench import bench
from bnpass.runtime.determinism import determinism
from bnpass.runtime.environment import environment
from bnpass.runtime.session import run, session
from bnpass.runtime.statistics import calibrate_onnx
from bnpass.runtime.verify import verify
from tests.runtime.conftest import array, edit
from tests.runtime.test_session import works

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not works("cuda"), reason="onnxruntime's CUDA provider does not start here"),
]


def test_session_is_on_cuda(convnet, rng):
    x = rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
    built = session(convnet, "cuda")
    assert built.get_providers()[0] == "CUDAExecutionProvider"
    want = run(session(convnet), None, {"x": x})[0]
    np.testing.assert_allclose(run(built, None, {"x": x})[0], want, rtol=1e-3, atol=1e-4)


def test_environment_says_so():
    found = environment(torch=False)
    assert found.gpus >= 1
    assert next(p for p in found.providers if p.name == "cuda").works


def test_verify_on_cuda(convnet):
    report = verify(convnet, convnet, provider="cuda")
    assert report.passed and report.provider == "cuda"
    wrong = edit(convnet, "K2", lambda w: w * np.float32(1.001))
    report = verify(convnet, wrong, provider="cuda")
    assert not report.passed and report.first_difference.node == "conv2"


def test_calibration_on_cuda(convnet, rng):
    x = rng.normal(size=(200, 3, 8, 8)).astype(np.float32)
    on_cpu, on_gpu = (calibrate_onnx(convnet, [x], provider=p) for p in ("cpu", "cuda"))
    for name in ("m1", "v1", "m2", "v2"):
        np.testing.assert_allclose(array(on_gpu, name), array(on_cpu, name), rtol=1e-3, atol=1e-4)


def test_same_bits_for_the_same_input(convnet):
    report = determinism(convnet, provider="cuda", fresh_process=False)
    same = next(c for c in report.checks if c.name == "the same input twice")
    assert same.equal is True
    assert all(c.max_rel < 1e-4 for c in report.checks)


def test_bench_with_io_binding(convnet):
    report = bench([convnet, convnet], batches=(4,), provider="cuda", runs=10)
    assert all(row.p50 > 0 and row.provider == "cuda" for row in report.rows)
