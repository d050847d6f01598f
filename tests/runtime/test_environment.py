from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from bnpass.errors import UsageError
from bnpass.runtime import ort, providers
from bnpass.runtime.environment import environment


def test_facts():
    found = environment(torch=False)
    assert found.packages["numpy"] == np.__version__
    assert found.packages["onnx"] == onnx.__version__
    assert found.cores >= 1 and found.torch == {}
    works = {p.name: p for p in found.providers}
    assert works["cpu"].works
    for provider in works.values():
        assert provider.works or (provider.reason and provider.hint)
    json.dumps(found.to_dict())


def test_missing_package_and_clash(monkeypatch):
    import importlib.metadata

    real = importlib.metadata.version

    def version(name):
        if name in ("onnxruntime", "onnxruntime-gpu"):
            return "1.30"
        if name in ("safetensors", *(p for p in ort.PACKAGES)):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = environment(torch=False)
    assert found.packages["safetensors"] is None
    assert found.install["safetensors"] == "pip install safetensors"
    problem, cure = found.problems[0]
    assert "installed over one another" in problem
    assert cure.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_without_onnxruntime(monkeypatch):
    import importlib

    real = importlib.import_module

    def missing(name, *rest):
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(ort, "installed_packages", dict)
    found = environment(torch=False)
    assert found.install["onnxruntime"].startswith("pip install onnxruntime")
    assert not any(p.works for p in found.providers)


def test_options_reach_the_provider_and_win_over_our_own():
    given = {"tf32": True, "cuda_graph": True, "device_id": 1, "deterministic": True}
    more = {"trt_fp16_enable": "1", "device_id": "2"}
    (tensorrt, cuda, cpu) = providers.settings("tensorrt", **given, more=more)
    assert tensorrt == ("TensorrtExecutionProvider", {
        "device_id": "2", "trt_cuda_graph_enable": "1", "trt_fp16_enable": "1"})
    assert cuda[1]["use_tf32"] == "1" and cuda[1]["device_id"] == "1"
    assert cpu == "CPUExecutionProvider"
    (cuda, _) = providers.settings("cuda", **given, more={"gpu_mem_limit": "1000"})
    assert cuda[1]["gpu_mem_limit"] == "1000" and cuda[1]["enable_cuda_graph"] == "1"
    with pytest.raises(UsageError, match="gpu_mem_limit on the CPU"):
        providers.settings("cpu", **{**given, "tf32": False}, more={"gpu_mem_limit": "1000"})
