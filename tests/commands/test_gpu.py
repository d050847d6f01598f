"""Commands on a GPU: torch and onnxruntime both compute there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bnpass.runtime import ort, providers
from tests.commands.helpers import Run

NAME = "CUDAExecutionProvider"
COULD = providers.gpu_count() > 0 and NAME in ort.onnxruntime().get_available_providers()
LENET = Path(__file__).parents[2] / "models" / "lenet.onnx"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not COULD, reason="no GPU, or an onnxruntime for the CPU only"),
]


def test_the_whole_job(bnpass: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(400) % 10
    patterns = rng.random((10, 28, 28))
    x = (255 * (0.7 * patterns[y] + 0.3 * rng.random((400, 28, 28)))).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    out = tmp_path / "out"
    result = bnpass(
        "run", LENET, "--data", tmp_path / "data.npz", "-o", out, "--steps", 60,
        "--device", "cuda", "--provider", "cuda", "--precision", "bf16",
    )  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads((out / "report.json").read_text())
    assert report["verify"]["passed"] and report["fold"]["left"] == 0
    assert report["accuracy"]["deployed"] > 0.5
    files = (out / "trained.onnx", out / "deploy.onnx")
    shown = bnpass("verify", *files, "--provider", "cuda", "--json")
    assert shown.code == 0 and json.loads(shown.out)["provider"] == "cuda"
    shown = bnpass("bench", *files, "--provider", "cuda", "--runs", 10, "--json")
    assert shown.code == 0, shown.err
