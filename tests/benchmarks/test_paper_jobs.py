"""Rows of the paper's benchmark in processes: order, failures, interruption, the same results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.jobs import Job, run_jobs
from benchmarks.paper.results import Result
from tests import processes

ROOT = MODELS.parent

# Rows that tell when they ran and with how many threads, that raise, and that are killed.
ROWS = '''
import os, time
import torch
from benchmarks.paper.results import Line
from bnpass.errors import InputError

def part(ctx, name):
    if name == "bad":
        raise ValueError("no luck with a part")
    if name == "without data":
        raise InputError("no data", "get some")
    started = time.time()
    time.sleep(0.5)
    return [started, time.time()]

def run(ctx, found=None):
    if found is not None:
        return [Line(ctx.row, "", "", "", numbers={"found": found, "from": time.time()})]
    if ctx.row == "raises":
        raise ValueError("no luck")
    if ctx.row == "killed":
        os.kill(os.getpid(), 9)
    if ctx.row == "waits":
        (ctx.out / "waiting").write_text(str(os.getpid()))
        time.sleep(300)
    started = time.time()
    time.sleep(0.5)
    numbers = {"threads": torch.get_num_threads(), "from": started, "to": time.time()}
    return [Line(ctx.row, "", "", "", numbers=numbers)]
'''


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "rows_of_a_test.py").write_text(ROWS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "rows_of_a_test"


def run(tmp_path: Path, jobs: list[Job], most: int) -> list[Result]:
    found: list[Result] = []
    run_jobs(Context(tmp_path), jobs, most, found.append)
    return found


def test_long_rows_start_first_and_the_lonely_one_runs_last_by_itself(tmp_path, rows, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    jobs = [Job("lonely", rows, 99.0, alone=True), Job("short", rows, 1.0), Job("long", rows, 9.0),
            Job("middle", rows, 5.0)]
    found = {r.name: r.lines[0].numbers for r in run(tmp_path, jobs, 2)}
    assert list(found)[-1] == "lonely"
    assert found["short"]["from"] >= min(found[n]["to"] for n in ("long", "middle"))
    assert found["lonely"]["from"] >= max(found[n]["to"] for n in ("short", "long", "middle"))
    assert [found[n]["threads"] for n in ("short", "long", "middle", "lonely")] == [1, 1, 1, 2]
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_a_row_that_fails_or_dies_leaves_the_others_alone(tmp_path, rows):
    jobs = [Job(n, rows, m) for n, m in (("raises", 3.0), ("killed", 2.0), ("good", 1.0))]
    found = {r.name: r for r in run(tmp_path, jobs, 1)}
    assert list(found) == ["raises", "killed", "good"]
    assert [r.failed for r in found.values()] == [True, True, False]
    assert found["raises"].note == "failed: ValueError: no luck"
    assert "-9" in found["killed"].note
    assert found["good"].lines[0].experiment == "good"


def test_a_row_is_given_what_its_parts_found(tmp_path, rows):
    (row,) = run(tmp_path, [Job("whole", rows, parts=("one", "two"))], 2)
    numbers = row.lines[0].numbers
    assert sorted(numbers["found"]) == ["one", "two"]
    assert numbers["from"] >= max(ended for _, ended in numbers["found"].values())
    assert row.seconds >= 0.5 and row.cpu > 0


def test_a_part_that_fails_or_has_no_data_ends_its_row_once(tmp_path, rows):
    jobs = [Job("fails", rows, 3.0, parts=("one", "bad", "bad")), Job("good", rows, 1.0),
            Job("absent", rows, 2.0, parts=("without data", "without data"))]
    found = run(tmp_path, jobs, 2)
    assert sorted(r.name for r in found) == ["absent", "fails", "good"]
    notes = {r.name: (r.note, r.failed, len(r.lines)) for r in found}
    assert notes["fails"] == ("failed: ValueError: no luck with a part", True, 0)
    assert notes["absent"] == ("left out: no data (get some)", False, 0)
    assert notes["good"] == ("", False, 1)


def untimed(value: Any) -> Any:
    """A JSON document without its seconds."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k != "seconds"}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def test_results_do_not_depend_on_the_number_of_processes(tmp_path):
    numbers = []
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        done = processes.run(
            [sys.executable, "-m", "benchmarks.paper", "--only", "deep-sigmoid",
             "--only", "figure1", "--quick", "--scale", "0.001", "--jobs", jobs,
             "-o", str(out)],
            cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "] figure1: BN, " in done.stderr
        document = json.loads((out / "table.json").read_text())
        assert [r["name"] for r in document["rows"]] == ["deep-sigmoid", "figure1"]
        numbers.append(untimed([r["lines"] for r in document["rows"]]))
    assert numbers[0] == numbers[1]


def test_an_interruption_ends_the_rows_and_keeps_what_there_is(tmp_path, rows):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from benchmarks.paper.context import Context\n"
        "from benchmarks.paper.jobs import Job, run_jobs\n"
        "jobs = [Job('waits', 'rows_of_a_test', 1.0), Job('good', 'rows_of_a_test', 2.0)]\n"
        "if __name__ == '__main__':\n"
        "    run_jobs(Context(Path(sys.argv[1])), jobs, 1, lambda r: print(r.name, flush=True))\n"
    )
    script = tmp_path / "interrupted.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with processes.started([sys.executable, str(script), str(tmp_path)], cwd=ROOT, text=True,
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as main:
        row = _pid(tmp_path / "waiting")
        main.send_signal(signal.SIGINT)
        out, _ = main.communicate()
        assert out.split() == ["good"]
        assert main.returncode != 0
        assert _ends(row)


def test_rows_end_with_a_killed_parent(tmp_path, rows):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from benchmarks.paper.context import Context\n"
        "from benchmarks.paper.jobs import Job, run_jobs\n"
        "if __name__ == '__main__':\n"
        "    run_jobs(Context(Path(sys.argv[1])), [Job('waits', 'rows_of_a_test')], 1, print)\n"
    )
    script = tmp_path / "killed.py"
    script.write_text(program)
    with processes.started([sys.executable, str(script), str(tmp_path)], cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}) as main:
        row = _pid(tmp_path / "waiting")
        main.kill()
        assert _ends(row)


def _pid(path: Path) -> int:
    limit = time.monotonic() + 120
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < limit, "the row never started"
        time.sleep(0.1)
    return int(path.read_text())


def _ends(pid: int) -> bool:
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
