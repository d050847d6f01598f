"""Runs one command again and again, each time in a fork whose n-th change of a file fails.

``python -m tests.faults.server JOBS.json``, with the shim preloaded: every job is a folder that is
copied, arguments, a number and what happens there; the answer is a line of JSON for each.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx.checker
import onnx.shape_inference  # loaded once, for all forks

from bnpass import api, cli

MODULES = {"train": ("onnxscript", "torch"), "run": ("onnxscript", "torch")}
"""What commands load that takes long, before the first fork."""


def limited(megabytes: int) -> None:
    """So much more memory than the process has by now, and no more."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (megabytes << 20),) * 2)


def in_a_fork(job: dict[str, Any], place: Path) -> int:
    """Exit code, or minus the signal, of a command in the folder ``place``."""
    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            os.chdir(place)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{place}.{name}", os.O_CREAT | os.O_WRONLY, 0o600), number)
            os.environ.update({**job["fault"], "FAULT_IN": str(place) + "/"})
            if "memory" in job:
                limited(job["memory"])
            code = cli.main(job["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(jobs: str) -> int:
    """Run all jobs."""
    assert onnx and api
    listed = json.loads(Path(jobs).read_text())
    for command in {job["arguments"][0] for job in listed}:
        for name in (f"bnpass.commands.{command}", *MODULES.get(command, ())):
            importlib.import_module(name)
    gc.freeze()
    for job in listed:
        place = Path(job["place"])
        shutil.copytree(job["folder"], place)
        print(json.dumps({"code": in_a_fork(job, place)}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
