"""Commands whose work several processes share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import processes
from tests.commands.helpers import Run, files

ROOT = Path(__file__).parents[2]


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "-m", "bnpass", *map(str, arguments)]
    done = processes.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def statistics(path: Path) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]


@pytest.mark.parametrize("method", ["pooled", "ema", "exact"])
def test_calibrate_shares_the_batches(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path, method: str
) -> None:
    options = ("--data", data, "--batch-size", "60", "--method", method, "--json")
    alone = bnpass("calibrate", normed, *options, "-o", tmp_path / "one.onnx")
    shared = torchrun("calibrate", normed, *options, "-o", tmp_path / "two.onnx")
    document = json.loads(shared.stdout)  # one process prints
    assert document["samples"] == alone.document["samples"] == 300
    for ours, theirs in zip(statistics(tmp_path / "one.onnx"), statistics(tmp_path / "two.onnx"),
                            strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_whole_job_in_two_processes(plain: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = torchrun("run", plain, "--data", data, "-o", out, "--steps", "20", "--lr", "0.3",
                    "--device", "cpu", "--json")
    report = json.loads(done.stdout)
    assert report["fold"]["left"] == 0
    assert report["accuracy"]["deployed"] == report["accuracy"]["with BN"] > 0.5
    assert {"deploy.onnx", "report.json", "trained.onnx"} <= set(files(out))
