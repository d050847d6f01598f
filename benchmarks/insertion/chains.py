"""Part 2: whole processes that insert into, and fold, a chain that grows."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from benchmarks.common import Cost, heading, measure, table
from benchmarks.folding.speed import print_failures
from benchmarks.net import Net

SIZES = (500, 1000, 2000, 4000, 8000, 16000)
LIMIT = 400.0


def chain(blocks: int) -> onnx.ModelProto:
    """``blocks`` times Conv (8 channels, 3x3, with a bias) - Relu."""
    n = Net(("N", 8, 8, 8))
    value = "x"
    for _ in range(blocks):
        value = n.op("Relu", n.conv(value, 8, 8))
    return n.model(n.conv(value, 8, 8))


def run(quick: bool) -> dict[str, Any]:
    """Print CPU time, time a nonlinearity and memory; return them."""
    sizes = (200, 400) if quick else SIZES
    found: dict[str, dict[int, Cost]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            source, target, folded = (Path(name) / f"{n}.onnx" for n in ("a", "b", "c"))
            onnx.save(chain(size), source)
            bnpass = [sys.executable, "-P", "-m", "bnpass"]
            steps = {
                "load+save": [sys.executable, "-P", "-m", "benchmarks.tools", "load+save",
                              str(source), str(folded)],
                "insert": [*bnpass, "insert", str(source), "-o", str(target), "--force"],
                "fold --no-verify": [*bnpass, "fold", str(target), "-o", str(folded), "--force",
                                     "--no-verify"],
            }
            for step, command in steps.items():
                found.setdefault(step, {})[size] = measure(command, limit=LIMIT, repeats=2)
    heading("Insertion into a chain of N Conv - Relu, whole processes")
    for what, unit in (("cpu", "CPU seconds"), ("wall", "wall seconds"), ("peak", "peak MiB")):
        print(f"{unit}\n")
        table(["step", *(f"N={n}" for n in sizes)],
              [[step, *("fails" if c.failed else float(getattr(c, what)) for c in row.values())]
               for step, row in found.items()])
        print()
    print("CPU microseconds a nonlinearity beyond those at the smallest size (level: linear)\n")
    first = sizes[0]
    table(["step", *(f"N={n}" for n in sizes[1:])],
          [[step, *(round((row[n].cpu - row[first].cpu) / (n - first) * 1e6) for n in sizes[1:])]
           for step, row in found.items()])
    print_failures({f"{s} at N={n}": c for s, row in found.items() for n, c in row.items()})
    return {step: {str(n): vars(c) for n, c in row.items()} for step, row in found.items()}
