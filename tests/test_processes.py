"""The tests' own processes: they end with their test, whatever it was started from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

TESTS = Path(__file__).parent
needs_groups = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")

PARENT = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


def alive(pid: int) -> bool:
    """Whether a process runs: one that is dead and not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def settled(pid: int) -> bool:
    for _ in range(200):
        if not alive(pid):
            return True
        signal.sigtimedwait([], 0.02)
    return False


@needs_groups
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_children_of_children_end_with_the_block() -> None:
    with pytest.raises(ZeroDivisionError), processes.started(  # noqa: PT012
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert alive(child)
        raise ZeroDivisionError
    assert settled(child)
    assert process.returncode == -signal.SIGKILL


@needs_groups
def test_a_process_has_a_time_limit() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run([sys.executable, "-c", "import time; time.sleep(600)"], timeout=0.5)


@needs_groups
def test_signals_that_are_ignored_here_are_not_ignored_there() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = processes.run(
            [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT))"],
            capture_output=True, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "default_int_handler" in done.stdout


def test_every_test_starts_its_processes_so() -> None:
    direct = ("subprocess.run(", "subprocess.Popen(", "check_output([", "os.system(")
    for path in TESTS.rglob("*.py"):
        if path not in (TESTS / "processes.py", Path(__file__)):
            found = [word for word in direct if word in path.read_text()]
            assert not found, f"{path.name} calls {found[0]}...): use tests.processes"
