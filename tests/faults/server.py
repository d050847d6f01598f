"""Runs one command again and again, each time in a fork whose n-th change of a file fails.

``python -m tests.faults.server JOBS.json``, with the shim preloaded: every job is a folder that is
copied, arguments, a number and what happens there; the answer is a line of JSON for each.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sys
from pathlib import Path

import onnx
import onnx.checker
import onnx.shape_inference  # loaded once, for all forks

from bnpass import api, cli
from bnpass.commands import fold, insert, unfold


def in_a_fork(job: dict[str, str], arguments: list[str], place: Path) -> int:
    """Exit code, or minus the signal, of a command in the folder ``place``."""
    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            os.chdir(place)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{place}.{name}", os.O_CREAT | os.O_WRONLY, 0o600), number)
            os.environ.update({**job, "FAULT_IN": str(place) + "/"})
            code = cli.main(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(jobs: str) -> int:
    """Run all jobs."""
    assert onnx and api and fold and insert and unfold
    gc.freeze()
    for job in json.loads(Path(jobs).read_text()):
        place = Path(job["place"])
        shutil.copytree(job["folder"], place)
        code = in_a_fork(job["fault"], job["arguments"], place)
        print(json.dumps({"code": code}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
