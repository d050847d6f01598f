"""Refusals of numbers name the channel as well as the node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnpass as package
from tests.commands.helpers import Run, add_norm, mlp, write


def changed(path: Path, name: str, channel: int, value: float) -> Path:
    model = add_norm(mlp())
    tensor = next(t for t in model.graph.initializer if t.name == name)
    numbers = onnx.numpy_helper.to_array(tensor).copy()
    numbers[..., channel] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, name))
    return write(model, path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("h0_gamma", np.inf, "scale is not finite: inf in channel 5"),
     ("h0_beta", np.nan, "shift is not finite: nan in channel 5"),
     ("h0_mean", -np.inf, "mean is not finite: -inf in channel 5"),
     ("h0_var", -2.0, "variance is negative: -2 with epsilon 1e-05 in channel 5")],
)  # fmt: skip
def test_statistics(bnpass: Run, tmp_path: Path, name: str, value: float, said: str) -> None:
    path = changed(tmp_path / "m.onnx", name, 5, value)
    shown = bnpass("fold", path, "--dry-run", "--json").document["plan"]
    assert said in str(shown)
    assert "'bn'" in str(shown)


def test_weights_that_would_overflow(bnpass: Run, tmp_path: Path) -> None:
    path = changed(tmp_path / "m.onnx", "h0_gamma", 3, 3e38)
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.name == "w0")
    numbers = onnx.numpy_helper.to_array(weight) * np.float32(1e4)
    weight.CopyFrom(onnx.numpy_helper.from_array(numbers, "w0"))
    write(model, path)
    plan = bnpass("fold", path, "--dry-run", "--json").document["plan"]
    assert "'fc0' would not be finite numbers (channel 3)" in str(plan)


def test_weights_of_a_module_that_would_overflow() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with torch.no_grad():
        module[0].weight.fill_(1e5)
        module[1].weight[2] = 1e38
    plan = package.fold(module, (torch.zeros(1, 1, 3, 3),), plan_only=True)
    said = " ".join(str(plan).split())
    assert "the new weights of '0' would not be finite numbers (channel 2)" in said
