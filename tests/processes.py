"""Processes that tests start: each has a time limit, default signals, and ends with its test.

A job in the background has SIGINT ignored, and hands that down: a test of Ctrl-C would then wait
for ever. So every process gets a group of its own, in which no signal is ignored, and the whole
group is ended when the test leaves the block, however it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any

SECONDS = 300.0
"""The time limit where a test gives none: wide, for a loaded machine."""


@contextlib.contextmanager
def started(
    command: Sequence[str], *, timeout: float = SECONDS, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """A process that runs inside the block; afterwards its group is gone.

    Args:
        command: program and arguments.
        timeout: seconds after which the group is killed, and the block fails.
        **options: of :class:`subprocess.Popen`.
    """
    options.setdefault("stdin", subprocess.DEVNULL)
    late = threading.Event()
    with subprocess.Popen(command, **_apart(options), **options) as process:
        def expire() -> None:
            late.set()
            end(process)

        clock = threading.Timer(timeout, expire)
        clock.daemon = True
        clock.start()
        try:
            yield process
        finally:
            clock.cancel()
            end(process)
    if late.is_set():
        raise subprocess.TimeoutExpired(command, timeout)


def run(
    command: Sequence[str], *, timeout: float = SECONDS, check: bool = False,
    capture_output: bool = False, input: Any = None, **options: Any,  # noqa: A002
) -> subprocess.CompletedProcess[Any]:
    """As :func:`subprocess.run`, but it ends what the process has started, too."""
    if capture_output:
        options.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with started(command, timeout=timeout, **options) as process:
        out, err = process.communicate(input)
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process and those of its group that are left."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()


def _apart(options: dict[str, Any]) -> dict[str, Any]:
    """A session of its own, signals as they are by default."""
    if not hasattr(os, "fork"):
        return {}
    before = options.pop("preexec_fn", None)

    def prepare() -> None:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_DFL)
        if before is not None:
            before()

    return {"start_new_session": True, "preexec_fn": prepare}
