from __future__ import annotations

import json

import numpy as np
import onnx

from bnpass.runtime import ort
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
