"""Closed, full and abandoned stdout and stderr: exit codes stay true, nobody sees a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bnpass as package
from tests import processes

ROOT = Path(package.__file__).parents[1]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def run(
    *arguments: object, closed: tuple[int, ...] = (), full: tuple[int, ...] = ()
) -> tuple[int, str]:
    """Exit code and stderr of a command that is started with such streams."""
    def prepare() -> None:
        for number in full:
            os.dup2(os.open(FULL, os.O_WRONLY), number)
        for number in closed:
            os.close(number)

    done = processes.run(
        [sys.executable, "-m", "bnpass", *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=prepare, timeout=120, check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_file_is_written_whatever_is_closed(
    normed: Path, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    out = tmp_path / "o.onnx"
    assert run("fold", normed, "-o", out, "--no-verify", closed=closed)[0] == 0
    assert package.inspect(out).operators.get("BatchNormalization", 0) == 0


def test_an_answer_that_cannot_be_printed_is_an_error(normed: Path) -> None:
    code, err = run("inspect", normed, closed=(1,))
    assert code == 3
    assert err.startswith("error: the result could not be printed: ")
    assert run("inspect", "missing.onnx", closed=(1, 2))[0] == 2


@needs_full
@pytest.mark.parametrize("arguments", [("--help",), ("env", "--no-torch", "--json"),
                                       ("inspect", "{model}"),
                                       ("fold", "{model}", "--dry-run", "--explain")])
def test_a_full_disk_loses_the_answer(normed: Path, arguments: tuple[str, ...]) -> None:
    code, err = run(*(word.format(model=normed) for word in arguments), full=(1,))
    assert code == 3
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]


@needs_full
def test_a_full_disk_for_words_alone(normed: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    code, err = run("insert", normed, "-o", out, "--explain", full=(1,))
    assert (code, out.exists()) == (0, True)
    assert "warning: the result could not be printed" in err
    assert run("inspect", normed, full=(2,))[0] == 0


def test_a_reader_that_left_stops_no_work(normed: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    out = tmp_path / "o.onnx"
    done = processes.run(
        [sys.executable, "-m", "bnpass", "insert", str(normed), "-o", str(out), "--explain"],
        stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(write)
    assert (done.returncode, done.stderr, out.exists()) == (0, "", True)
