"""``bnpass fold`` of many files: a process each, a table, and no file that stops another one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnpass.errors import InputError, UsageError
from bnpass.report.box import proof_of
from bnpass.report.tables import Table, size
from bnpass.report.ui import Ui
from bnpass.report.words import many

_OWN = frozenset({"model", "output", "jobs", "json", "quiet", "verbose", "debug"})
"""Arguments that are not handed on to the processes."""


def is_many(args: argparse.Namespace) -> bool:
    """Whether several files, or a folder of files, were given."""
    return len(args.model) > 1 or Path(args.model[0]).is_dir()


def fold_many(
    args: argparse.Namespace, ui: Ui, declare: Callable[[argparse.ArgumentParser], None]
) -> int:
    """Fold every file; 1 where one of them failed.

    Args:
        args: of ``fold``.
        ui: is told of every file.
        declare: declares the options of ``fold``, for they are handed on as they were written.

    Raises:
        UsageError: no folder to write, or two files that would be written to the same place.
        InputError: a folder without models.
    """
    if args.sidecar or args.report:
        raise UsageError(f"{'--sidecar' if args.sidecar else '--report'} with several files",
                         "fold them one by one")
    jobs = _jobs(args)
    given = _given(args, declare)
    running = _Running([sys.executable, "-P", "-m", "bnpass", "fold", "--json", *given])
    table = _table()
    results = []
    with ThreadPoolExecutor(args.jobs) as pool, running:
        for (model, output), found in zip(jobs, pool.map(running.fold, jobs), strict=True):
            results.append(found)
            ui.log(f"{len(results)}/{len(jobs)} {model}: {_outcome(found)}")
            for warning in found.get("warnings", ()):
                ui.warn(f"{model}: {warning}")
            ui.record({"model": model, "output": output, **found})
            table.add(*_row(model, found))
    failed = [r for r in results if r["exit_code"]]
    ui.table(table)
    for (model, _), found in zip(jobs, results, strict=True):
        if "error" in found:
            ui.say(f"{model}: {found['error']['message']}")
    ui.say(_last_line(results, failed, args))
    return 1 if failed else 0


def _jobs(args: argparse.Namespace) -> list[tuple[Path, Path | None]]:
    """Each file with what is to be written."""
    if not args.output and not args.dry_run and not args.check:
        raise UsageError("no output folder given for several files",
                         "add -o FOLDER, or --dry-run to plan only")
    folder = Path(args.output) if args.output and not args.dry_run else None
    if folder is not None and folder.is_file():
        raise UsageError(f"the output is a file: {folder}", "give a folder for several files")
    found = [pair for name in args.model for pair in _within(Path(name), folder)]
    names = Counter(relative for _, relative in found)
    twice = next((name for name, times in names.items() if times > 1), None)
    if twice is not None and folder is not None:
        raise UsageError(f"two files would be written to {folder / twice}",
                         "fold them in two calls, into two folders")
    if folder is not None:
        for _, relative in found:
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
    return [(path, None if folder is None else folder / name) for path, name in found]


def _within(path: Path, folder: Path | None) -> list[tuple[Path, Path]]:
    """The file, or those of a folder, with the names under which they are written."""
    if not path.is_dir():
        return [(path, Path(path.name))]
    inside = [p for p in sorted(path.rglob("*.onnx"))
              if folder is None or not p.resolve().is_relative_to(folder.resolve())]
    if not inside:
        raise InputError(f"no .onnx file in {path}", "give another folder, or files")
    return [(p, p.relative_to(path)) for p in inside]


def _given(
    args: argparse.Namespace, declare: Callable[[argparse.ArgumentParser], None]
) -> list[str]:
    """The options as they were written, but for those of this process."""
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    declare(parser)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.type = None
    at = args.arguments.index(args.command)
    words = [*args.arguments[:at], *args.arguments[at + 1 :]]
    found = vars(parser.parse_args(words))
    options = []
    for action in parser._actions:
        if action.dest in found and action.dest not in _OWN:
            value = found[action.dest]
            name = action.option_strings[-1]
            values = value if isinstance(value, list) else [value]
            options += [name] if action.nargs == 0 else [f"{name}={text}" for text in values]
    return options


@dataclass
class _Running:
    """The processes that fold; those that still run are ended with it, and none is started."""

    command: Sequence[str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    ended: bool = False

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def fold(self, job: tuple[Path, Path | None]) -> dict[str, Any]:
        """What a process says of one file: its JSON, with ``exit_code``."""
        if self.ended:
            return {"exit_code": 130}
        model, output = job
        rest = [] if output is None else ["-o", os.fspath(output)]
        places = [os.fspath(Path(p or ".").absolute()) for p in sys.path]
        process = subprocess.Popen(  # noqa: S603  (this program itself)
            [*self.command, *rest, "--", os.fspath(model)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        )  # fmt: skip
        self.processes.append(process)
        out, _ = process.communicate()
        try:
            document: dict[str, Any] = json.loads(out)
        except ValueError:
            message = f"the process ended with {process.returncode} and said nothing"
            document = {"ok": False, "error": {"message": message, "hint": "fold it alone"}}
        return {**document, "exit_code": process.returncode}


def _table() -> Table:
    return Table("", ["file", "BatchNorm", "other maps", "size", "largest error", "result"],
                 right=frozenset({1, 2, 3, 4}))  # fmt: skip


def _row(model: Path, found: dict[str, Any]) -> tuple[str, ...]:
    if "plan" not in found:
        return (str(model), "-", "-", "-", "-", _outcome(found))
    entries = found["plan"]["folds"]
    norms = [e for e in entries if e["kind"] == "BatchNormalization"]
    others = [e for e in entries if e["kind"] != "BatchNormalization"]
    sizes = [size(found[word]["bytes"]) for word in ("before", "after") if word in found]
    error, limit = proof_of(found.get("verify"))
    proof = "-" if error is None else f"{error:.2g} of {limit:.2g}"
    return (str(model), _gone(norms), _gone(others), " -> ".join(sizes) or "-", proof,
            _outcome(found))


def _gone(entries: Sequence[dict[str, Any]]) -> str:
    left = sum(entry["how"] not in ("", "merged") for entry in entries)
    return f"{left:,} of {len(entries):,}" if entries else "0"


def _outcome(found: dict[str, Any]) -> str:
    if "error" in found:
        return "FAILED"
    if found["exit_code"]:
        return "would fold" if found.get("check") else "nothing changed"
    if not found.get("folded"):
        return "nothing to fold"
    return "PASSED" if "verify" in found else "folded" if "output" in found else "would fold"


def _last_line(
    results: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]], args: argparse.Namespace
) -> str:
    if args.check:
        return f"{many(len(failed), 'file')} of {len(results):,} would fold or failed"
    where = f", in {args.output}" if args.output and not args.dry_run else ""
    return f"{many(len(results) - len(failed), 'file')} done{where}, {len(failed):,} failed"
