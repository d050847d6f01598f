"""Part 1: what each tool makes of each pattern."""

from __future__ import annotations

import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import onnx

from benchmarks import tools
from benchmarks.common import heading, table
from benchmarks.folding.judge import verdict
from benchmarks.patterns import PATTERNS, Pattern

MARKS = {"F": "folded, exact", "p": "partly", "-": "left, right", "W": "wrong numbers",
         "X": "crash or invalid model"}


def run(quick: bool) -> dict[str, Any]:
    """Print the table; return it."""
    names = [name for name in tools.TOOLS if name != "load+save" and tools.installed(name)]
    patterns = PATTERNS[::6] if quick else PATTERNS
    with tempfile.TemporaryDirectory() as folder:
        sources = [_written(pattern, Path(folder), i) for i, pattern in enumerate(patterns)]
        columns = {name: _column(name, patterns, sources, Path(folder)) for name in names}
    heading(f"Patterns by tool ({len(patterns)} patterns)")
    print(", ".join(f"{mark} {text}" for mark, text in MARKS.items()))
    print("error = max|a-b| / max|a| against the original on onnxruntime, optimizations off;\n"
          "'stays' marks what may not fold: there - is the right answer\n")
    table(["pattern", *names],
          [[("stays: " if p.must_stay else "") + p.name, *(_mark(columns[n][i]) for n in names)]
           for i, p in enumerate(patterns)])
    print()
    table(["total", *names], _totals(names, columns, patterns))
    print()
    table(["folded, exact", "of", *names], _by_section(names, columns, patterns))
    if tools.missing():
        print(f"\nnot installed here, so not measured: {', '.join(tools.missing())}")
    return {
        "patterns": [{"name": p.name, "must_stay": p.must_stay, "stay": p.stay,
                      **{n: columns[n][i] for n in names}} for i, p in enumerate(patterns)],
        "missing": tools.missing(),
    }


def _written(pattern: Pattern, folder: Path, number: int) -> Path:
    path = folder / f"{number}.onnx"
    onnx.save(pattern.make(), path)
    return path


def _column(name: str, patterns: list[Pattern], sources: list[Path], folder: Path
            ) -> list[tuple[str, float]]:
    """One tool's marks; the tool runs in a process of its own, as some of them abort."""
    found: list[tuple[str, float]] = []
    pool = ProcessPoolExecutor(1)
    for number, (pattern, source) in enumerate(zip(patterns, sources, strict=True)):
        try:
            target = folder / f"{number}.{name}.onnx"
            job = pool.submit(_judged, name, pattern.name, source, target)
            found.append(job.result(timeout=300))
        except BrokenProcessPool:
            pool = ProcessPoolExecutor(1)
            found.append(("X", float("nan")))
    pool.shutdown()
    return found


def _judged(name: str, pattern_name: str, source: Path, target: Path) -> tuple[str, float]:
    import contextlib
    import logging
    import os

    logging.disable(logging.CRITICAL)
    pattern = next(p for p in PATTERNS if p.name == pattern_name)
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing), \
            contextlib.redirect_stderr(nothing):
        try:
            tools.TOOLS[name](str(source), str(target))
        except BaseException:  # noqa: BLE001 - a crash is a result here
            return "X", float("nan")
        return verdict(pattern, source, target)


def _mark(result: tuple[str, float]) -> str:
    mark, worst = result
    return f"W {worst:.2g}" if mark == "W" else mark


def _totals(names: list[str], columns: dict[str, list[tuple[str, float]]],
            patterns: list[Pattern]) -> list[list[Any]]:
    counts = {name: Counter(mark for mark, _ in columns[name]) for name in names}
    rows: list[list[Any]] = [[f"{mark} {text}", *(counts[n][mark] for n in names)]
                             for mark, text in MARKS.items()]
    can = [i for i, p in enumerate(patterns) if not p.must_stay]
    rows.append([f"F of the {len(can)} that can fold",
                 *(sum(columns[n][i][0] == "F" for i in can) for n in names)])
    return rows


def _by_section(names: list[str], columns: dict[str, list[tuple[str, float]]],
                patterns: list[Pattern]) -> list[list[Any]]:
    """How many of a section's patterns that can fold each tool folds exactly."""
    rows: list[list[Any]] = []
    for title in dict.fromkeys(p.section for p in patterns):
        can = [i for i, p in enumerate(patterns) if p.section == title and not p.must_stay]
        if can:
            rows.append([title, len(can),
                         *(sum(columns[n][i][0] == "F" for i in can) for n in names)])
    return rows
