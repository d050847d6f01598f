"""The benchmark of what proof costs, on its smallest model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import processes

pytest.importorskip("onnxruntime")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "runtime.py"


@pytest.mark.slow
def test_one_megabyte(tmp_path: Path) -> None:
    done = processes.run(
        [sys.executable, str(SCRIPT), "1"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "1 MB" in line)
    assert row.count(" s, ") == 4
    assert not list(tmp_path.iterdir())
