"""bnpass env."""

from __future__ import annotations

import onnx
import onnxruntime

from tests.commands.helpers import Run


def test_versions_and_providers_are_shown(bnpass: Run) -> None:
    result = bnpass("env", "--no-torch")
    assert result.code == 0
    assert onnx.__version__ in result.out
    assert "cpu" in result.out


def test_json_has_what_really_works(bnpass: Run) -> None:
    document = bnpass("env", "--no-torch", "--json").document
    assert document["packages"]["onnx"] == onnx.__version__
    assert onnxruntime.__version__ in document["packages"].values()
    works = {fact["name"]: fact["works"] for fact in document["providers"]}
    assert works["cpu"] is True
    assert set(works) == {"cpu", "cuda", "tensorrt"}
