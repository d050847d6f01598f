from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnpass.errors import InputError, MissingDependencyError, UsageError
from bnpass.runtime import ort, providers
from bnpass.runtime.session import run, session
from tests.runtime.conftest import text


def works(provider: str) -> bool:
    """Ask onnxruntime itself, without our checks, whether a provider starts."""
    module = ort.onnxruntime()
    name = providers.PROVIDERS[provider]
    if name not in module.get_available_providers():
        return False
    content = text(RELU).SerializeToString()
    if hasattr(module, "preload_dlls"):
        module.preload_dlls()  # CUDA's libraries may lie in wheels, where no loader looks
    try:
        built = module.InferenceSession(content, providers=[name], enable_fallback=0)
    except Exception:  # noqa: BLE001  (whatever it raises, it does not work)
        return False
    return name in built.get_providers()


RELU = " g (float[N] x) => (float[N] y) { y = Relu(x) }"


def test_from_proto_and_from_path(tmp_path, mlp):
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp, path)
    feeds = {"x": np.ones((3, 6), np.float32)}
    a = run(session(mlp), None, feeds)[0]
    b = run(session(path, threads=1, optimize=False), None, feeds)[0]
    assert a.shape == (3, 4)
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_external_data_stays_on_disk(tmp_path, mlp):
    feeds = {"x": np.ones((3, 6), np.float32)}
    want = run(session(mlp), None, feeds)[0]
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp, path, save_as_external_data=True, size_threshold=0, location="mlp.data")
    np.testing.assert_array_equal(run(session(path), None, feeds)[0], want)
    shell = onnx.load(path, load_external_data=False)
    np.testing.assert_array_equal(run(session(shell, folder=tmp_path), None, feeds)[0], want)


def test_two_gigabytes_go_through_a_file(monkeypatch, mlp):
    import bnpass.runtime.session as module

    want = run(session(mlp), None, {"x": np.ones((3, 6), np.float32)})[0]
    monkeypatch.setattr(module, "_TWO_GIB", 10)
    got = run(session(mlp), None, {"x": np.ones((3, 6), np.float32)})[0]
    np.testing.assert_array_equal(got, want)
    assert not any(t.HasField("data_location") for t in mlp.graph.initializer)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_never_silently_on_the_cpu(provider):
    if works(provider):
        assert providers.PROVIDERS[provider] in session(text(RELU), provider).get_providers()
        return
    with pytest.raises(MissingDependencyError, match=r"missing|cannot start|has no") as caught:
        session(text(RELU), provider)
    assert caught.value.exit_code == 3
    assert any(word in caught.value.hint for word in ("pip install", "driver", "GPU"))


def test_provider_that_is_not_built_in(monkeypatch):
    module = ort.onnxruntime()
    monkeypatch.setattr(module, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match="has no CUDAExecutionProvider") as caught:
        session(text(RELU), "cuda")
    assert "onnxruntime-gpu" in caught.value.hint


def test_provider_dropped_by_onnxruntime_is_an_error():
    class OnCpu:
        def get_providers(self):
            return ["CPUExecutionProvider"]

    with pytest.raises(MissingDependencyError, match="CUDAExecutionProvider"):
        providers.check(OnCpu(), "cuda")


def test_misspelt_provider():
    with pytest.raises(UsageError, match="did you mean 'cuda'"):
        session(text(RELU), "cudda")


def test_missing_file_and_broken_model(tmp_path):
    with pytest.raises(InputError, match="no such"):
        session(tmp_path / "none.onnx")
    broken = text(" g (float[N] x) => (float[N] y) { y = Add(x, nowhere) }")
    with pytest.raises(InputError, match="nowhere"):
        session(broken)


def test_newer_ir_version_and_opset():
    model = text(RELU)
    model.ir_version = 99
    with pytest.raises(MissingDependencyError, match="IR version 99") as caught:
        session(model)
    assert caught.value.hint.startswith("pip install -U onnxruntime")
    model = text(RELU)
    model.opset_import[0].version = 99
    with pytest.raises(MissingDependencyError, match="opset 99"):
        session(model)


def test_no_kernel():
    model = text(
        " g (double[N,3,4,4] x) => (double[N,2,4,4] y) { y = Conv(x, w) }", w=np.ones((2, 3, 1, 1))
    )
    with pytest.raises(ort.NoKernelError, match="Conv"):
        session(model)


def test_bfloat16_in_and_out():
    model = text(" g (bfloat16[N] x) => (bfloat16[N] y) { f = Cast<to=1>(x) y = Cast<to=16>(f) }")
    x = np.array([1.5, -2, 0], ml_dtypes.bfloat16)
    (y,) = run(session(model), None, {"x": x})
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, x)
    (empty,) = run(session(model), None, {"x": x[:0]})
    assert empty.shape == (0,)


def test_bad_feed_is_one_of_our_errors(mlp):
    with pytest.raises(InputError):
        run(session(mlp), None, {"x": np.ones((3, 7), np.float32)})


def test_onnxruntime_not_installed(monkeypatch):
    import importlib

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match="onnxruntime") as caught:
        ort.onnxruntime()
    assert "pip install onnxruntime" in caught.value.hint


def test_clash_of_packages_has_a_cure():
    cure = ort.clash_cure({"onnxruntime": "1.30", "onnxruntime-gpu": "1.31"})
    assert cure == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert ort.clash_cure({"onnxruntime": "1.30"}) == ""


def test_model_of_float16():
    node = helper.make_node("Relu", ["x"], ["y"])
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["N"]) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", io[:1], io[1:]))
    model.ir_version, model.opset_import[0].version = 8, 17
    (y,) = run(session(model), None, {"x": np.array([-1, 2], np.float16)})
    assert y.tolist() == [0, 2]
