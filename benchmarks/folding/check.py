"""Part 5: what the check before writing costs: many nodes, a ResNet-50, 1.9 GB of weights."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from benchmarks.common import Cost, heading, measure, table
from benchmarks.folding.memory import write_external
from benchmarks.folding.nets import chain, resnet50
from benchmarks.folding.speed import commands, print_failures

OWN = ("load+save", "bnpass --no-verify", "bnpass (every edit proven)", "bnpass (verified)")
LIMIT = 600.0
BLOCKS = 8000
LAYERS = 205  # of 9.4 MB


def run(quick: bool) -> dict[str, Any]:
    """Print what each file costs with and without the check; return it."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for what, source in _files(Path(name), quick):
            found[what] = _one(what, source, 1 if quick else 2)
            for written in source.parent.iterdir():
                written.unlink()
    return found


def _files(folder: Path, quick: bool) -> Any:
    path = folder / "model.onnx"
    blocks, layers = (200, 4) if quick else (BLOCKS, LAYERS)
    onnx.save(chain(blocks), path)
    yield f"a chain of {blocks:,} conv-bn-relu blocks", path
    onnx.save(resnet50(64 if quick else 224), path)
    yield "ResNet-50", path
    size = write_external(path, layers)
    yield f"{layers} Convs with BN, {size / 1e9:.2f} GB of external data", path


def _one(what: str, source: Path, repeats: int) -> dict[str, Any]:
    target = source.with_name("out.onnx")
    costs = {tool: measure(command, limit=LIMIT, repeats=repeats)
             for tool, command in commands(source, target).items() if tool in OWN}
    heading(what)
    base, bare = costs["load+save"], costs["bnpass --no-verify"]
    table(["", "CPU s", "over load+save", "beyond --no-verify, s", "over load+save", "wall s",
           "peak MiB"], [[tool, *_row(cost, base, bare)] for tool, cost in costs.items()])
    print_failures(costs)
    left = _left_out(source, target)
    print(f"\nleft out: {'; '.join(left) or 'nothing'}")
    return {"left out": left, **{tool: vars(cost) for tool, cost in costs.items()}}


def _row(cost: Cost, base: Cost, bare: Cost) -> list[Any]:
    if cost.failed:
        return ["fails", *[""] * 5]
    beyond = max(cost.cpu - bare.cpu, 0.0) if cost is not base else 0.0
    return [cost.cpu, f"{cost.cpu / base.cpu:.1f}x", beyond, f"{beyond / base.cpu:.1f}x", cost.wall,
            cost.peak]


def _left_out(source: Path, target: Path) -> list[str]:
    """What the check did not do for want of time, as it says itself."""
    command = [sys.executable, "-P", "-m", "bnpass", "fold", str(source), "-o", str(target),
               "--force", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          cwd=Path(__file__).resolve().parents[2])
    return list(json.loads(done.stdout)["verify"]["answers"]["left_out"])
