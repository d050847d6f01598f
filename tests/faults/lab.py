"""Commands whose calls of the system fail: many jobs in the forks of one process, and its folders.

See :mod:`tests.faults.server`, which runs the jobs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

import bnpass as package
from tests import processes

ROOT = Path(package.__file__).parents[1]
SHIM = Path(__file__).with_name("shim.c")
COMPILER = shutil.which("cc") or shutil.which("gcc")
EVERY = os.environ.get("BNPASS_FAULTS") == "all"

needs_shim = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="no C compiler for the shim")


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file, also of those in folders."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}


def served(
    tmp_path: Path, jobs: Sequence[dict[str, Any]], shim: Path | None = None
) -> list[int]:
    """The exit codes of jobs, each run in a copy of its folder."""
    listed = tmp_path / f"jobs{len(list(tmp_path.iterdir()))}.json"
    listed.write_text(json.dumps(jobs))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if shim is not None:
        environment["LD_PRELOAD"] = str(shim)
    done = processes.run(
        [sys.executable, "-m", "tests.faults.server", str(listed)], cwd=ROOT, check=True,
        capture_output=True, text=True, env=environment, timeout=300 + 30 * len(jobs))
    return [json.loads(line)["code"] for line in done.stdout.splitlines()]


def job(folder: Path, place: Path, arguments: Sequence[str], memory: int = 0, **fault: object
        ) -> dict[str, Any]:
    """A command in a copy of a folder, with a fault (AT, DO, LOG) or so many MiB of memory."""
    found: dict[str, Any] = {
        "folder": str(folder), "place": str(place), "arguments": list(arguments),
        "fault": {f"FAULT_{key}": str(value) for key, value in fault.items()}}
    return {**found, "memory": memory} if memory else found


def chosen(steps: int, few: int) -> list[int]:
    """Which of the calls fail: all of them with BNPASS_FAULTS=all, else a few."""
    if EVERY:
        return list(range(1, steps + 1))
    return sorted({1 + place * (steps - 1) // (few - 1) for place in range(few)})


def model_of(folder: Path, name: str = "o.onnx") -> list[bytes]:
    """A model's weights with its data, whatever the data file is called."""
    return [t.raw_data for t in onnx.load(folder / name).graph.initializer]


def said(place: Path) -> str:
    """What a job has printed on stderr."""
    return place.with_name(f"{place.name}.err").read_text(errors="replace")


def assert_clear(place: Path, code: int, where: str) -> None:
    """One line ``error:`` where it failed, none where not, and never a bug's."""
    text = said(place)
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    assert len(errors) == (code != 0), f"{where}: {text}"
    assert "internal error" not in text, f"{where}: {text}"
    assert "Traceback" not in text, f"{where}: {text}"
