"""Rows in processes of their own: as many at a time as there are cores, one thread in each.

The networks are small: two processes of one thread do more than one process of two threads, and
with a fixed number of threads the results do not depend on how many run side by side. The long
rows come in parts, mostly one an arm, whose outcomes the row itself is then given.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

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
        parts: names for the module's ``part(ctx, name)``, which run beside each other; then comes
            ``run(ctx, found)`` with what they returned, by name.
    """

    name: str
    module: str
    minutes: float = 0.0
    alone: bool = False
    parts: tuple[str, ...] = ()


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
    ordered = sorted(jobs, key=lambda job: (job.alone, -job.minutes))
    _Scheduler(ctx, [_Row(job) for job in ordered], most, report).run()


@dataclass
class _Row:
    """How far a row has come.

    Attributes:
        job: the row.
        waiting: parts that have not started; ``None`` stands for the row itself, the last one.
        found: what its parts returned.
        cpu: their processor time.
        started: when the first of them did.
        busy: its processes now.
    """

    job: Job
    waiting: list[str | None] = field(init=False)
    found: dict[str, Any] = field(default_factory=dict)
    cpu: float = 0.0
    started: float = 0.0
    busy: int = 0

    def __post_init__(self) -> None:
        self.waiting = [*self.job.parts, None]

    def ready(self) -> bool:
        """Whether something of it can start: the row itself waits for its parts."""
        return bool(self.waiting) and (self.waiting[0] is not None or not self.busy)


@dataclass
class _Scheduler:
    ctx: Context
    rows: list[_Row]
    most: int
    report: Callable[[Result], None]
    running: dict[Connection, tuple[_Row, str | None, BaseProcess]] = field(default_factory=dict)

    def run(self) -> None:
        try:
            while self._start() or self.running:
                for ready in connection.wait(list(self.running)):
                    assert isinstance(ready, Connection)
                    self._end(ready, *self.running.pop(ready))
        finally:
            for _row, _part, process in self.running.values():
                process.terminate()
            for _row, _part, process in self.running.values():
                process.join()

    def _start(self) -> bool:
        """Start what there is room for; the lonely rows come last, one at a time."""
        for row in self.rows:
            if row.job.alone and any(r.waiting for r in self.rows if not r.job.alone):
                continue
            while row.ready() and len(self.running) < (1 if row.job.alone else self.most):
                part = row.waiting.pop(0)
                row.busy += 1
                row.started = row.started or time.perf_counter()
                pipe, process = _process(self.ctx, row, part)
                self.running[pipe] = row, part, process
        return bool(self.running)

    def _end(self, pipe: Connection, row: _Row, part: str | None, process: BaseProcess) -> None:
        row.busy -= 1
        value, cpu = _received(pipe, row.job, process)
        row.cpu += cpu
        if part is None:
            value.cpu, value.seconds = row.cpu, time.perf_counter() - row.started
            self.report(value)
        elif not isinstance(value, Result):
            row.found[part] = value
        elif row.waiting:  # a part that failed, or has no data: so has the row, told once
            row.waiting.clear()
            self.report(value)


def _process(ctx: Context, row: _Row, part: str | None) -> tuple[Connection, BaseProcess]:
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    found = row.found if part is None else {}
    process = context.Process(target=_child, args=(theirs, ctx, row.job, part, found),
                              name=row.job.name)
    with _threads(None if row.job.alone else 1):
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


def _received(pipe: Connection, job: Job, process: BaseProcess) -> tuple[Any, float]:
    try:
        value, cpu = pipe.recv()
    except EOFError:
        process.join()
        note = f"failed: its process ended with {process.exitcode}"
        value, cpu = Result(job.name, note=note, failed=True), 0.0
    pipe.close()
    process.join()
    return value, cpu


def _child(
    pipe: Connection, ctx: Context, job: Job, part: str | None, found: dict[str, Any]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its rows by itself
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    try:
        value = run_row(ctx, job, found) if part is None else _run_part(ctx, job, part)
        pipe.send((value, time.process_time()))
    except Exception as error:
        note = f"failed: {type(error).__name__}: {error}"
        pipe.send((Result(job.name, note=note, failed=True), time.process_time()))
        raise  # multiprocessing prints the traceback; the other rows go on
    finally:
        pipe.close()


def _leave_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_part(ctx: Context, job: Job, part: str) -> Any:
    ctx = replace(ctx, row=job.name)
    ctx.log(f"{part}: starts")
    try:
        return import_module(job.module).part(ctx, part)
    except InputError as error:
        return _left_out(ctx, job, error)


def _left_out(ctx: Context, job: Job, error: InputError) -> Result:
    note = f"left out: {error.message} ({error.hint})"
    ctx.log(note)
    return Result(job.name, note=note)


def run_row(ctx: Context, job: Job, found: dict[str, Any] | None = None) -> Result:
    """Run one row in this process; a row without its data is left out and says so."""
    ctx = replace(ctx, row=job.name)
    ctx.log(f"about {max(0.1, job.minutes * ctx.scale):.1f} minutes in all")
    run = import_module(job.module).run
    try:
        lines = run(ctx, found) if job.parts else run(ctx)
    except InputError as error:
        return _left_out(ctx, job, error)
    if ctx.scale < 1.0:  # a smoke test reaches no aim and misses none
        lines = [replace(line, ok=None) for line in lines]
    ctx.log("done")
    return Result(job.name, lines)
