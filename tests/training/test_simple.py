"""bnpass.train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bnpass
from bnpass.errors import UsageError
from bnpass.training import TrainConfig
from tests.training.nets import blobs, mlp


def test_settings_by_name_and_the_same_run_as_by_config(tmp_path: Path) -> None:
    one, two = mlp(), mlp()
    history = bnpass.train(one, blobs(), blobs(60, seed=1), steps=20, lr=0.05, seed=3)
    config = TrainConfig(steps=20, lr=0.05, seed=3)
    bnpass.train(two, blobs(), blobs(60, seed=1), config=config, output=tmp_path / "run")
    assert history.rows[-1].step == 20 and not one.training
    assert (tmp_path / "run" / "metrics.csv").exists()
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("model", "settings", "said"), [
    ("net.onnx", {}, "train takes a torch module, not str"),
    (None, {"step": 3}, "unknown setting 'step'"),
])  # fmt: skip
def test_what_cannot_be_meant(model: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        bnpass.train(model or mlp(), blobs(), **settings)
    assert raised.value.hint
