"""What the benchmarks share: the machine's name, child processes measured, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxsim", "onnxslim", "onnxscript",
            "onnxoptimizer", "openvino", "aimet-onnx")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=doc, allow_abbrev=False)
    made.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    made.add_argument("-o", "--output", type=Path, metavar="OUT.json", help="write the results")
    return made


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from bnpass import __version__

    found = {name: version(name) for name in PACKAGES}
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "bnpass": __version__,
        **{name: text for name, text in found.items() if text},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = [tuple(part.strip() for part in line.split(":", 1)) for line in lines if ":" in line]
    fields = dict(reversed(facts))
    kind = f"family {fields.get('cpu family')} model {fields.get('model')}"
    return f"{fields.get('model name', platform.machine())} ({kind})"


def heading(text: str) -> None:
    """A section's title."""
    print(f"\n## {text}\n", flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print an aligned table; the first column is left-aligned, the others right-aligned."""
    cells = [[str(c) for c in columns], *([_cell(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for number, row in enumerate(cells):
        parts = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:],
                                                                   strict=True))]
        print("  ".join(parts).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    sys.stdout.flush()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def save(output: Path | None, results: dict[str, Any]) -> None:
    """Write the results beside what was printed."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1, default=str) + "\n")
        print(f"\nwrote {output}")


@dataclass(frozen=True)
class Cost:
    """What one whole process cost.

    Attributes:
        wall: seconds.
        cpu: seconds of user and system time, its threads and children included.
        peak: peak resident memory in MiB; that of its children, each at its own peak, added.
        failed: empty, or why there is no result.
    """

    wall: float = 0.0
    cpu: float = 0.0
    peak: float = 0.0
    failed: str = ""


def measure(command: Sequence[str], *, limit: float, repeats: int = 1) -> Cost:
    """Run a whole process; of several runs the one that took the least CPU time."""
    found: list[Cost] = []
    for _ in range(repeats):
        cost = _measure(command, limit)
        if cost.failed:
            return cost
        found.append(cost)
    return min(found, key=lambda cost: cost.cpu)


def _measure(command: Sequence[str], limit: float) -> Cost:
    """One run, waited for with wait4 so that CPU and memory are those of this process alone."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        peaks: dict[int, float] = {}
        while True:
            _add_peaks(peaks, child.pid)
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            wall = time.perf_counter() - start
            if pid:
                break
            if wall > limit:
                child.kill()
                os.wait4(child.pid, 0)
                child.returncode = -9
                return Cost(failed=f"over {limit:.0f} s")
            time.sleep(0.005)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            return Cost(failed=_last_line(log.read().decode(errors="replace")))
    peak = sum(peaks.values())
    if not peak:  # no /proc here
        peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak)


def _add_peaks(peaks: dict[int, float], pid: int) -> None:
    """Note the peaks so far of a process and of those that it has started."""
    peaks[pid] = max(peaks.get(pid, 0.0), _peak(pid))
    try:
        started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in started:
        _add_peaks(peaks, int(child))


def _peak(pid: int) -> float:
    """Peak resident memory so far, MiB; ru_maxrss would count this process's own before exec."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), 0.0)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " | ".join(line[:160] for line in lines[-2:]) or "it failed without a word"
