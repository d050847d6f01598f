"""The whole job as a function."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bnpass.data.recorded import RECIPE, record_recipe
from bnpass.errors import RefusedError, UsageError, VerificationError
from bnpass.frontends.onnx import folding
from bnpass.onnx_model.model import OnnxModel
from bnpass.pipeline import RunConfig, run_pipeline
from bnpass.pipeline.datasets import open_for
from bnpass.pipeline.summary import count_norms
from bnpass.training import TrainConfig
from tests.commands.helpers import CLASSES, FEATURES, add_norm, files, mlp


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, 200)
    x = (3 * np.eye(FEATURES)[y] + rng.normal(size=(200, FEATURES))).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return str(tmp_path / "data.npz")


def short(**options: object) -> RunConfig:
    train = TrainConfig(lr=0.3, steps=20, batch_size=20, device="cpu")
    return RunConfig(**{"train": train, **options})  # type: ignore[arg-type]


def test_a_model_in_memory_is_taken_and_left_as_it_is(tmp_path: Path, data: str) -> None:
    model = mlp(layers=3)
    before = model.SerializeToString()
    report = run_pipeline(model, data, tmp_path / "out", short())
    assert model.SerializeToString() == before
    assert report["insert"]["inserted"] == 2
    assert count_norms(onnx.load(tmp_path / "out/deploy.onnx")) == 0
    written = json.loads((tmp_path / "out/report.json").read_text())
    assert written["accuracy"] == report["accuracy"]
    assert written["settings"]["steps"] == 20


def test_the_recipe_of_the_data_travels_in_the_model(tmp_path: Path, data: str) -> None:
    report = run_pipeline(mlp(), data, tmp_path / "out", short(data={"scale": 0.5}))
    deploy = onnx.load(tmp_path / "out/deploy.onnx")
    assert json.loads(next(p.value for p in deploy.metadata_props if p.key == RECIPE)) == (
        report["data"]["recipe"]
    )
    x, _ = open_for(deploy, data).take(np.arange(3))
    np.testing.assert_allclose(x, 0.5 * np.load(data)["x"][:3])


def test_a_recorded_recipe_gives_way_to_options_and_to_other_data(
    tmp_path: Path, data: str
) -> None:
    recipe = {**open_for(mlp(), data).recipe, "scale": 0.25}
    model = record_recipe(record_recipe(mlp(), {}), recipe)
    assert len(model.metadata_props) == 1
    assert open_for(model, data).recipe["scale"] == 0.25
    assert open_for(model, data, scale=2.0).recipe["scale"] == 2.0
    np.savez(tmp_path / "bytes.npz", x=np.full((9, FEATURES), 255, np.uint8), y=np.zeros(9, int))
    assert open_for(model, str(tmp_path / "bytes.npz")).take(np.arange(1))[0].max() == 1.0


def test_a_fold_that_is_wrong_is_not_written(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = folding.fold

    def wrong(model: OnnxModel, options: folding.FoldOptions) -> folding.Folded:
        model.proto = add_norm(model.proto, after="h1", channels=CLASSES)
        return right(model, options)

    monkeypatch.setattr(folding, "fold", wrong)
    model = mlp(ending="Softmax")
    with pytest.raises(VerificationError, match="differ"):
        run_pipeline(model, data, tmp_path / "out", short())
    assert "deploy.onnx" not in files(tmp_path / "out")
    assert "trained.onnx" in files(tmp_path / "out")


def test_an_arm_that_diverges_says_which_rate(tmp_path: Path, data: str) -> None:
    config = short(train=TrainConfig(lr=1e35, steps=20, batch_size=20, device="cpu"))
    with pytest.raises(RefusedError, match=r"with BN: the loss diverged at learning rate 1e\+35"):
        run_pipeline(mlp(kind="Relu", layers=4), data, tmp_path / "out", config)


def test_a_share_outside_of_0_and_1_is_refused() -> None:
    with pytest.raises(UsageError, match="validation share 1"):
        short(validation=1.0)
