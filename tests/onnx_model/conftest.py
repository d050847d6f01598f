"""Run commands as people do: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnpass.cli import main
from tests.commands.helpers import CLASSES, FEATURES, Result, Run, add_norm, mlp, write


@pytest.fixture
def one_thread():
    """Nets this small train faster so, and other processes may want the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bnpass(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("COLUMNS", raising=False)  # output as it goes into a pipe or a file

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A network without BN."""
    return write(mlp(), tmp_path / "plain.onnx")


@pytest.fixture
def normed(tmp_path: Path) -> Path:
    """A network with one BN."""
    return write(add_norm(mlp()), tmp_path / "normed.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """300 samples of three classes that a linear map can tell apart."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, 300)
    centres = rng.normal(size=(CLASSES, FEATURES)) * 2
    x = (centres[y] + rng.normal(size=(300, FEATURES))).astype(np.float32)
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y)
    return path
