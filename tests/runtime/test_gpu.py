"""On a machine with CUDA: the provider really runs, agrees with the CPU, and is timed there."""

from __future__ import annotations

import numpy as np
import pytest

from bnpass.runtime import ort, providers
from bnpass.runtime.bench import bench
from bnpass.runtime.determinism import determinism
from bnpass.runtime.environment import environment
from bnpass.runtime.session import run, session
from bnpass.runtime.verify import verify
from bnpass.statistics.onnx_engine import calibrate_onnx
from tests.runtime.conftest import array, edit

NAME = "CUDAExecutionProvider"
# Not whether the provider starts: that it does, where it could, is what is tested.
COULD = providers.gpu_count() > 0 and NAME in ort.onnxruntime().get_available_providers()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not COULD, reason="no GPU, or an onnxruntime for the CPU only"),
]


def test_session_is_on_cuda(convnet, rng):
    x = rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
    built = session(convnet, "cuda")
    assert built.get_providers()[0] == NAME
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


def test_cuda_graph_replays_new_inputs(convnet, rng):
    module = ort.onnxruntime()
    shape = (3, 3, 8, 8)
    first, second = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    on_cpu = session(convnet)
    want = run(on_cpu, None, {"x": second})[0]
    built = session(convnet, "cuda", cuda_graph=True)
    x = module.OrtValue.ortvalue_from_numpy(first, "cuda", 0)
    y = module.OrtValue.ortvalue_from_numpy(np.zeros_like(want), "cuda", 0)
    binding = built.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output(built.get_outputs()[0].name, y)
    for _ in range(2):
        built.run_with_iobinding(binding)
    x.update_inplace(second)
    built.run_with_iobinding(binding)
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-3, atol=1e-4)
