"""The shim, compiled, and models to work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import processes
from tests.commands.helpers import CLASSES, FEATURES, add_norm, mlp
from tests.faults.lab import COMPILER, SHIM


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets calls fail."""
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    assert COMPILER is not None
    processes.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", str(made), str(SHIM), "-ldl"],
                  check=True)
    return made


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, a folded pair, and an earlier output with data of its own."""
    folder = tmp_path_factory.mktemp("inputs")
    onnx.save(mlp(), folder / "plain.onnx")
    model = add_norm(mlp())
    onnx.save(model, folder / "m.onnx")
    onnx.save(model, str(folder / "e.onnx"), save_as_external_data=True, location="e.data",
              size_threshold=0)
    from bnpass.cli import main

    assert main(["fold", str(folder / "m.onnx"), "-o", str(folder / "f.onnx"), "--sidecar",
                 str(folder / "f.undo"), "--no-verify", "-q"]) == 0
    assert main(["fold", str(folder / "e.onnx"), "-o", str(folder / "o.onnx"), "--no-verify",
                 "-q"]) == 0
    return folder


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data to train with, and an earlier output."""
    folder = tmp_path_factory.mktemp("training")
    onnx.save(mlp(), folder / "plain.onnx")
    onnx.save(add_norm(mlp()), folder / "m.onnx")
    onnx.save(add_norm(mlp(seed=1)), folder / "o.onnx")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 90)
    pixels = (rng.normal(size=(CLASSES, FEATURES))[labels] * 2
              + rng.normal(size=(90, FEATURES))).astype(np.float32)
    np.savez(folder / "d.npz", x=pixels, y=labels)
    return folder
