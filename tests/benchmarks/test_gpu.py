"""The GPU benchmark does its whole job on any machine, in small."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests import processes

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    arguments = ["--quick", "--device", "cpu", "--rounds", "3", "--steps", "8", "--each", "0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = processes.run(
        [sys.executable, str(SCRIPT), *arguments, "-o", str(output)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "57 BN" in done.stdout and "0 BN left" in done.stdout
    assert "torch runs on the CPU" in done.stdout
    report = json.loads(output.read_text())
    assert report["passed"] and not report["failures"]
    parts = {row["part"].split(",")[0] for row in report["rows"]}
    for part in ("insert", "calibrate", "fold", "export", "import", "verify on cpu"):
        assert part in parts
    against = {row["against"] for row in report["rows"] if row["ratio"]}
    assert {"no BN", "BN by hand", "with BN, onnxruntime's own fusion"} <= against
    assert report["machine"]["packages"]["torch"]


def test_a_step_that_fails_is_named() -> None:
    from benchmarks.gpu_job.result import Result

    result = Result(seconds=10.0)
    with result.part("first", lambda _: None):
        raise ValueError("no such thing")
    with result.part("second", lambda _: None):
        result.add("second", "what", "1")
    assert result.failures == ["first: ValueError: no such thing"]
    assert not result.to_dict()["passed"] and len(result.rows) == 1
