"""The reference models of this repository: import, compare, one step, back, compare again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from bnpass.frontends.onnx.free_batch import free_batch  # noqa: E402
from bnpass.importer import to_torch, write_back  # noqa: E402
from tests.importer.nets import ort_run, relative, take_one_step  # noqa: E402

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))


def test_there_are_reference_models() -> None:
    assert MODELS


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_reference_model(path: Path) -> None:
    model = onnx.load(path)
    gm = to_torch(path, batch="free").eval()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [d.dim_value for d in dims[1:]]
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    with torch.no_grad():
        assert relative(gm(torch.from_numpy(x)), ort_run(free_batch(model), x)[0]) < 1e-5
    assert write_back(gm, path).SerializeToString() == model.SerializeToString()
    take_one_step(gm, torch.from_numpy(x))
    trained = write_back(gm, model)
    onnx.checker.check_model(trained)
    with torch.no_grad():
        made = gm.eval()(torch.from_numpy(x))
    assert relative(made, ort_run(free_batch(trained), x)[0]) < 1e-5
