"""Part 4: what the folded models cost to run, side by side on onnxruntime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx

from benchmarks import tools
from benchmarks.common import heading, measure, table
from benchmarks.folding.judge import affine, error, feeds_for
from benchmarks.folding.judge import run as outputs
from benchmarks.folding.nets import NETS
from benchmarks.folding.speed import commands

WANTED = ("bnpass", "onnxruntime", "onnxscript", "onnxsim", "onnxslim")


def run(quick: bool) -> dict[str, Any]:
    """Print ratios of latency; return them."""
    from bnpass.runtime.bench import bench

    heading("Inference: median latency over that of bnpass's model, interleaved pairs")
    print("onnxruntime with its default optimizations, one thread, batch 1; below 1 the peer is "
          "faster\n")
    found: dict[str, Any] = {}
    rows = []
    for name, make in NETS.items():
        with tempfile.TemporaryDirectory() as folder:
            models, notes = _made(Path(folder), make())
            report = bench(models, batches=(1,), threads=(1,), runs=20 if quick else 400,
                           seconds=3 if quick else 20)
            found[name] = {**report.to_dict(), "notes": notes}
        for row in report.rows:
            ratio = next((r for r in report.ratios if r.model == row.model), None)
            interval = f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio else ""
            rows.append([f"{name}: {row.model}", row.p50, ratio.ratio if ratio else 1.0, interval,
                         notes.get(row.model, "")])
    table(["model: folded by", "p50 ms", "ratio", "95% interval", "affine left, error"], rows)
    return found


def _made(folder: Path, model: onnx.ModelProto) -> tuple[dict[str, Path], dict[str, str]]:
    """Every tool's file, bnpass's first, the original last; and what is left in each."""
    source = folder / "original.onnx"
    onnx.save(model, source)
    feeds = feeds_for(model, 3)
    reference = outputs(source, feeds)
    models, notes = {}, {}
    for name in WANTED:
        if not tools.installed(name):
            continue
        target = folder / f"{name}.onnx"
        key = "bnpass --no-verify" if name == "bnpass" else name
        cost = measure(commands(source, target)[key], limit=120)
        if cost.failed:
            notes[name] = cost.failed
            continue
        norms, others = affine(onnx.load(target))
        worst = error(reference, outputs(target, feeds))
        models[name], notes[name] = target, f"{norms} BN, {others} arithmetic, {worst:.1e}"
    models["nobody"] = source
    return models, notes
