"""Rows in processes of their own: as many at a time as there are cores, one thread in each.

The networks are small: two processes of one thread do more than one process of two threads, and
with a fixed number of threads the results do not depend on how many rows run side by side.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks.paper.context import Context
from benchmarks.paper.results import Result
from bnpass.errors import InputError


@dataclass(frozen=True)
class Job:
    """A row to run.

    Attributes:
        name: of the row.
        module: its importable name; it has ``run(ctx)``, which returns the table's lines.
        minutes: about what it takes; long rows start first.
        alone: nothing runs beside it, and torch takes the threads that it takes by itself.
    """

    name: str
    module: str
    minutes: float = 0.0
    alone: bool = False


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(
    ctx: Context, jobs: Sequence[Job], most: int, report: Callable[[Result], None]
) -> None:
    """Run all rows, the longest first, those that want to be alone behind the others.

    Args:
        ctx: the call's settings.
        jobs: the rows.
        most: processes at a time.
        report: is called in this process with each row's result, in the order of their ends. A row
            that fails or whose process dies has a result too, with ``failed`` set.

    Raises:
        KeyboardInterrupt: as it comes; the processes are ended first.
    """
    waiting = sorted(jobs, key=lambda job: (job.alone, -job.minutes))
    running: dict[Connection, tuple[Job, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (1 if waiting[0].alone else most):
                job = waiting.pop(0)
                pipe, process = _start(ctx, job)
                running[pipe] = job, process
            for ready in connection.wait(list(running)):
                assert isinstance(ready, Connection)
                report(_result(ready, *running[ready]))
                del running[ready]
    finally:
        for _job, process in running.values():
            process.terminate()
        for _job, process in running.values():
            process.join()


def _start(ctx: Context, job: Job) -> tuple[Connection, BaseProcess]:
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, ctx, job), name=job.name)
    with _threads(None if job.alone else 1):
        process.start()
    theirs.close()
    return ours, process


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """What processes started now inherit as the number of OpenMP threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if count is not None:
            os.environ.pop("OMP_NUM_THREADS")
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before


def _result(pipe: Connection, job: Job, process: BaseProcess) -> Result:
    try:
        result: Result = pipe.recv()
    except EOFError:
        process.join()
        result = Result(job.name, note=f"failed: its process ended with {process.exitcode}",
                        failed=True)
    pipe.close()
    process.join()
    return result


def _child(pipe: Connection, ctx: Context, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its rows by itself
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    try:
        pipe.send(run_row(ctx, job))
    except Exception as error:
        note = f"failed: {type(error).__name__}: {error}"
        pipe.send(Result(job.name, note=note, failed=True))
        raise  # multiprocessing prints the traceback; the other rows go on


def _leave_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_row(ctx: Context, job: Job) -> Result:
    """Run one row in this process; a row without its data is left out and says so."""
    ctx = replace(ctx, row=job.name)
    start, busy = time.perf_counter(), time.process_time()
    ctx.log(f"about {max(0.1, job.minutes * ctx.scale):.1f} minutes")
    result = Result(job.name)
    try:
        result.lines = import_module(job.module).run(ctx)
        if ctx.scale < 1.0:  # a smoke test reaches no aim and misses none
            result.lines = [replace(line, ok=None) for line in result.lines]
    except InputError as error:
        result.note = f"left out: {error.message} ({error.hint})"
    result.seconds, result.cpu = time.perf_counter() - start, time.process_time() - busy
    ctx.log(result.note or "done")
    ctx.log(f"{result.seconds:.0f} s, {result.cpu:.0f} s of processor time")
    return result
