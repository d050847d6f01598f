"""A command that is asked to end clears up and says so with its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bnpass as package
from tests import processes

ROOT = Path(package.__file__).parents[1]

PROGRAM = """
import sys, time
from bnpass import cli
from bnpass.commands import inspect
from bnpass.files import replacing

def work(args, ui):
    with replacing(args.model + ".out") as temporary:
        temporary.write_text("half")
        print("ready", flush=True)
        time.sleep(600)

inspect.run = work
sys.argv = ["bnpass", "inspect", sys.argv[1]]
cli.script()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signals here")
@pytest.mark.parametrize(("number", "code", "said"), [
    (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "terminated"),
    (signal.SIGINT, 130, "interrupted")])
def test_a_signal_clears_up(tmp_path: Path, number: int, code: int, said: str) -> None:
    with processes.started(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "m")], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == code
    assert err.splitlines()[0] == f"error: {said}"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
