"""The compatibility benchmark judges what a runtime wrote; here it is the installed one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from benchmarks import compat

LENET = Path(__file__).parents[2] / "models" / "lenet.onnx"
SCRIPT = compat.SCRIPTS / "on_onnxruntime.py"


def test_a_runtime_is_judged_by_its_numbers(tmp_path: Path) -> None:
    jobs = compat.deployed(LENET, tmp_path)
    assert [job.name for job in jobs] == ["lenet", "lenet float16"]
    wrong = replace(jobs[0], expected=jobs[0].expected + np.float32(1))
    short = replace(jobs[0], expected=jobs[0].expected[:-1])
    missing = replace(jobs[0], model=tmp_path / "nothing.onnx")
    command = [sys.executable, str(SCRIPT)]
    found = compat.run_jobs("onnxruntime", command, [*jobs, wrong, short, missing], tmp_path)
    assert found.runtime.startswith("onnxruntime 1.")
    assert [verdict.startswith("FAILED") for verdict in found.verdicts] == [
        False, False, True, True, True
    ]
    assert "did not run" in found.verdicts[-1]


@pytest.mark.slow
def test_what_does_not_install_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = compat.deployed(LENET, tmp_path)
    package = f"./{tmp_path.name}-no-such-folder"
    found = compat.run_python("onnxruntime", package, SCRIPT.name, jobs, tmp_path)
    assert found.verdicts == ["-", "-"]
    assert "left out" in found.runtime
    assert "does not install here" in capsys.readouterr().err
