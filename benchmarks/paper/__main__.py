"""The paper's experiments: ``python -m benchmarks.paper --data DIR -o out/paper``.

DIR holds mnist/ and fashion-mnist/ with the four IDX files each; without it the committed sample of
MNIST is used, and rows on Fashion-MNIST are left out. ``--quick`` trains a fiftieth of the steps on
a few images: it shows that everything runs, and its numbers mean little.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from bnpass.errors import BnpassError, InputError

if TYPE_CHECKING:
    from benchmarks.paper.context import Context
    from benchmarks.paper.results import Result

QUICK = 0.02


def rows() -> dict[str, ModuleType]:
    """The experiments by name, in the order of the table."""
    from benchmarks.paper.rows import (
        binary_mnist,
        binary_mnist_best,
        cost,
        deep_sigmoid,
        ensemble,
        figure1,
        inception,
        robustness,
        sigmoid_inception,
    )

    modules = (binary_mnist, binary_mnist_best, deep_sigmoid, sigmoid_inception, inception,
               robustness, figure1, ensemble, cost)
    return {module.NAME: module for module in modules}


def main(arguments: list[str] | None = None) -> int:
    """Run the rows that were asked for; the exit code is 1 where one failed, not where it missed"""
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except BnpassError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("benchmarks.paper", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with mnist/ and fashion-mnist/")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/paper"))
    parser.add_argument("--only", action="append", default=[], metavar="ROW")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:g} of the steps, one seed")
    parser.add_argument("--scale", type=float, help="factor on the steps")
    parser.add_argument("--seeds", type=int, help="most seeds an arm")
    parser.add_argument("--jobs", type=int, help="rows at a time (default: one a core)")
    parser.add_argument("--list", action="store_true", help="name the rows and what they take")
    return parser


def _run(args: argparse.Namespace) -> int:
    from benchmarks.paper.context import Context
    from benchmarks.paper.jobs import Job, cores, run_jobs
    from benchmarks.paper.results import markdown, write_all

    known = rows()
    if args.list:
        print("\n".join(f"{n:20} about {m.MINUTES} minutes" for n, m in known.items()))
        return 0
    unknown = sorted(set(args.only) - set(known))
    if unknown:
        raise InputError(f"no row {', '.join(unknown)}", f"there are {', '.join(known)}")
    scale = args.scale or (QUICK if args.quick else 1.0)
    few = {"images": 6000, "rates": 2} if args.quick else {}
    ctx = Context(args.out, args.data, scale, args.seeds or (1 if args.quick else 3), **few)
    args.out.mkdir(parents=True, exist_ok=True)
    most = args.jobs or cores()
    head = heading(ctx, most)
    ctx.log(head)
    names = [name for name in known if name in args.only or not args.only]
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        results.sort(key=lambda r: names.index(r.name))
        write_all(results, args.out, head)

    jobs = [Job(n, known[n].__name__, known[n].MINUTES, getattr(known[n], "ALONE", False),
                getattr(known[n], "PARTS", ())) for n in names]
    try:
        run_jobs(ctx, jobs, most, report)
    except KeyboardInterrupt:
        ctx.log(f"interrupted; what {len(results)} rows found is in {args.out}")
        return 130
    took = f"In all {(time.perf_counter() - ctx.started) / 60:.1f} minutes."
    write_all(results, args.out, f"{head} {took}")
    print(markdown(results, f"{head} {took}"))
    return 1 if any(result.failed for result in results) else 0


def heading(ctx: Context, jobs: int) -> str:
    """What was run on what, said above the table: data, steps, seeds, machine."""
    from importlib.metadata import version

    data = "MNIST and Fashion-MNIST" if ctx.data else "a sample of MNIST (10,000 training images)"
    text = f"Data: {data}. At most {ctx.seeds} seeds."
    if ctx.scale != 1.0:
        images = f" on {ctx.images} training images" if ctx.images else ""
        text += (f" Trained {ctx.scale:g} of the steps{images}: a smoke test of the benchmark, "
                 "not a reproduction.")
    return (f"{text} {processor()}, {os.cpu_count()} cores; torch {version('torch')}, "
            f"{jobs} rows at a time, one thread each; seconds of the single rows overlap.")


def processor() -> str:
    """What the machine calls its processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
