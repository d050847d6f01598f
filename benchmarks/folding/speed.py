"""Part 2: whole processes on a chain of conv-bn-relu blocks that grows."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from benchmarks import tools
from benchmarks.common import Cost, heading, measure, table
from benchmarks.folding.nets import chain

SIZES = (500, 1000, 2000, 4000, 8000, 16000)
LIMIT = 400.0  # seconds for one process
GIVE_UP = 60.0  # a tool that took longer than this is not tried at the next size


def run(quick: bool) -> dict[str, Any]:
    """Print times, ratios and memory; return them."""
    sizes = (200, 400) if quick else SIZES
    found: dict[str, dict[int, Cost]] = {}
    for blocks in sizes:
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / "chain.onnx"
            onnx.save(chain(blocks), source)
            for tool in commands(source, Path(name) / "out.onnx"):
                last = max(found.get(tool, {}).values(), key=lambda c: c.wall, default=Cost())
                if last.failed or last.wall > GIVE_UP:
                    continue
                target = Path(name) / "out.onnx"
                target.unlink(missing_ok=True)
                fast = last.wall < 5
                found.setdefault(tool, {})[blocks] = measure(
                    commands(source, target)[tool], limit=LIMIT, repeats=3 if fast else 1)
    _print(found, sizes)
    return {tool: {str(n): vars(cost) for n, cost in row.items()} for tool, row in found.items()}


def commands(source: Path, target: Path) -> dict[str, list[str]]:
    """Tool -> the command line that turns source into target."""
    program = [sys.executable, "-P", "-m", "benchmarks.tools"]
    bnpass = [sys.executable, "-P", "-m", "bnpass", "fold", str(source), "-o", str(target),
              "--force"]
    found = {"load+save": [*program, "load+save", str(source), str(target)],
             "bnpass --no-verify": [*bnpass, "--no-verify"],
             "bnpass (every edit proven)": [*bnpass, "--check-budget", "0"],
             "bnpass (verified)": bnpass}
    for name in tools.PEERS:
        if tools.installed(name):
            found[name] = [*program, name, str(source), str(target)]
    return found


def _print(found: dict[str, dict[int, Cost]], sizes: tuple[int, ...]) -> None:
    base = found["load+save"]
    heading("Speed: a chain of N conv-bn-relu blocks, whole processes")
    print("CPU seconds (user + system); empty: not tried, the size before took over "
          f"{GIVE_UP:.0f} s\n")
    columns = ["tool", *(f"N={n}" for n in sizes)]
    table(columns, [[tool, *(_shown(row.get(n), "cpu") for n in sizes)]
                    for tool, row in found.items()])
    print("\nwall seconds\n")
    table(columns, [[tool, *(_shown(row.get(n), "wall") for n in sizes)]
                    for tool, row in found.items()])
    print("\nCPU time over that of load+save\n")
    table(columns, [[tool, *(_ratio(row.get(n), base.get(n)) for n in sizes)]
                    for tool, row in found.items()])
    print("\nCPU time over that of bnpass --no-verify\n")
    ours = found["bnpass --no-verify"]
    table(columns, [[tool, *(_ratio(row.get(n), ours.get(n)) for n in sizes)]
                    for tool, row in found.items()])
    print("\nCPU microseconds a block beyond those at the smallest size (level: linear)\n")
    table(["tool", *(f"N={n}" for n in sizes[1:])],
          [[tool, *(_slope(row.get(n), row.get(sizes[0]), n - sizes[0]) for n in sizes[1:])]
           for tool, row in found.items()])
    print("\npeak memory, MiB\n")
    table(columns, [[tool, *(_shown(row.get(n), "peak") for n in sizes)]
                    for tool, row in found.items()])
    print_failures({f"{t} at N={n}": c for t, row in found.items() for n, c in row.items()})


def print_failures(costs: dict[str, Cost]) -> None:
    """Why a process has no result, below the table."""
    for what, cost in costs.items():
        if cost.failed:
            print(f"{what}: {cost.failed}")


def _shown(cost: Cost | None, what: str) -> Any:
    if cost is None:
        return None
    return "fails" if cost.failed else float(getattr(cost, what))


def _ratio(cost: Cost | None, base: Cost | None) -> str:
    if cost is None or base is None or cost.failed or base.failed:
        return ""
    return f"{cost.cpu / base.cpu:.1f}x"


def _slope(cost: Cost | None, first: Cost | None, blocks: int) -> str:
    if cost is None or first is None or cost.failed or first.failed:
        return ""
    return f"{(cost.cpu - first.cpu) / blocks * 1e6:.0f}"
