"""The committed .onnx files: sound, without BN, and equal to the builders beside them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

MODELS = Path(__file__).resolve().parents[2] / "models"
FILES = sorted(MODELS.glob("*.onnx"))
NAMES = [file.stem for file in FILES]
NORMALISATIONS = {
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
}


def load_script(name: str) -> ModuleType:
    """Import models/NAME.py by its path, as `models` is no package."""
    spec = importlib.util.spec_from_file_location(f"models_{name}", MODELS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count(model: onnx.ModelProto, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph.node)


def test_every_builder_has_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(MODELS), *sys.path])
    pytest.importorskip("torch")
    assert set(NAMES) == set(load_script("build").NAMES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_file_is_sound_small_and_plain(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert path.stat().st_size < 2_000_000
    assert not NORMALISATIONS & {node.op_type for node in model.graph.node}
    (image,) = model.graph.input
    dims = image.type.tensor_type.shape.dim
    assert dims[0].dim_param == "N"
    assert [d.dim_value for d in dims[1:]] == [1, 28, 28]
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_layer_has_a_real_bias(path: Path) -> None:
    model = onnx.load(path)
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]
    assert layers
    for layer in layers:
        assert np.abs(constants[layer.input[2]]).min() > 0


@pytest.mark.parametrize("path", FILES, ids=NAMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_file_equals_its_builder(path: Path, batch: int) -> None:
    torch = pytest.importorskip("torch")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = load_script(path.stem).build().eval()
    x = np.random.default_rng(batch).random((batch, 1, 28, 28), dtype=np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"image": x})
    assert actual.shape == (batch, 10)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_seed_decides_the_weights() -> None:
    torch = pytest.importorskip("torch")
    build = load_script("mnist_mlp").build
    first, again, other = (next(iter(build(seed).parameters())) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_inception_is_the_papers_before() -> None:
    model = onnx.load(MODELS / "inception.onnx")
    assert count(model, "LRN") == 2
    assert count(model, "Dropout") == 1
    assert count(model, "Concat") >= 2
    (dropout,) = [node for node in model.graph.node if node.op_type == "Dropout"]
    assert len(dropout.input) == 2, "no training_mode input: the Dropout is off"


def test_deep_nets_are_deep() -> None:
    assert count(onnx.load(MODELS / "deep_sigmoid_mlp.onnx"), "Sigmoid") == 10
    assert count(onnx.load(MODELS / "deep_sigmoid_conv.onnx"), "Sigmoid") == 8


def test_no_trace_of_the_machine_that_built_them() -> None:
    for path in FILES:
        raw = path.read_bytes()
        assert b"/home/" not in raw
        assert b"site-packages" not in raw
        assert b".py" not in raw
