"""What proof costs: verify, determinism and bench on models of 1, 100 and 2,000 MB.

    python benchmarks/runtime.py [megabytes ...]

The models are made in a temporary folder (twice their size is needed on the disk): Gemm, BatchNorm,
Relu, and the same folded. Each command runs as a process of its own, the start included; its peak
memory counts the model that onnxruntime maps from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import heading, table  # noqa: E402
from bnpass.files import save_model  # noqa: E402

WIDTHS = {1: 256, 100: 2048}
LARGEST = 4096


@dataclass
class Cost:
    """What a command took: seconds of wall clock, peak memory in MB, its JSON document."""

    seconds: float
    memory: float
    document: dict[str, object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", nargs="*", type=int, default=[1, 100, 2000])
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        print(make(arguments.megabytes[0], arguments.make))
        return 0
    rows = []
    for size in arguments.megabytes:
        with tempfile.TemporaryDirectory(prefix="bnpass-runtime-") as place:
            rows.append(measured(size, Path(place)))
    heading("Seconds and peak memory of a command, the process's start included")
    table(["model", "layers", "fold", "verify", "determinism", "bench", "p50 ms folded",
           "folded / with BN"], rows)
    return 0


def measured(megabytes: int, folder: Path) -> list[object]:
    """One row: every command on a model of a size."""
    source, target = folder / "bn.onnx", folder / "folded.onnx"
    # In a process of its own: the peak memory of a child is at least that of its parent.
    making = [sys.executable, __file__, str(megabytes), "--make", str(source)]
    layers = int(subprocess.run(making, check=True, capture_output=True, text=True).stdout)
    print(f"{megabytes} MB: {layers} layers", file=sys.stderr, flush=True)
    fold = bnpass("fold", source, "-o", target, "--no-verify")
    verify = bnpass("verify", source, target)
    same = bnpass("verify", target, "--determinism")
    bench = bnpass("bench", source, target, "--batches", "1", "--seconds", "10", "--runs", "30")
    rows, ratios = bench.document["rows"], bench.document["ratios"]
    assert isinstance(rows, list)
    assert isinstance(ratios, list)
    shown = [f"{c.seconds:.1f} s, {c.memory:.0f} MB" for c in (fold, verify, same, bench)]
    ratio = f"{ratios[0]['ratio']:.3f} ({ratios[0]['low']:.3f} to {ratios[0]['high']:.3f})"
    return [f"{megabytes} MB", layers, *shown, rows[-1]["p50"], ratio]


def make(megabytes: int, path: Path) -> int:
    """Write Gemm-BatchNorm-Relu layers of about a size; returns how many."""
    width = next((w for limit, w in WIDTHS.items() if megabytes <= limit), LARGEST)
    layers = max(round(megabytes * 1e6 / (4 * width * width)), 1)
    generator = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    for index in range(layers):
        weight = generator.standard_normal((width, width), np.float32) * np.sqrt(2 / width)
        arrays = {"W": weight.astype(np.float32), "b": np.zeros(width, np.float32),
                  "gamma": generator.uniform(0.5, 1.5, width).astype(np.float32),
                  "beta": generator.normal(size=width).astype(np.float32) / 10,
                  "mean": generator.normal(size=width).astype(np.float32) / 10,
                  "var": generator.uniform(0.5, 2, width).astype(np.float32)}  # fmt: skip
        tensors += [numpy_helper.from_array(a, f"{k}{index}") for k, a in arrays.items()]
        names = [f"{k}{index}" for k in arrays]
        steps = [("Gemm", [value, *names[:2]]), ("BatchNormalization", [f"g{index}", *names[2:]]),
                 ("Relu", [f"n{index}"])]  # fmt: skip
        outputs = [f"g{index}", f"n{index}", f"r{index}"]
        nodes += [helper.make_node(kind, inputs, [out], f"{kind}{index}")
                  for (kind, inputs), out in zip(steps, outputs, strict=True)]  # fmt: skip
        value = f"r{index}"
    port = helper.make_tensor_value_info
    shape = ["N", width]
    graph = helper.make_graph(nodes, "g", [port("x", TensorProto.FLOAT, shape)],
                              [port(value, TensorProto.FLOAT, shape)], tensors)  # fmt: skip
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    save_model(model, path, external=megabytes > 10)
    return layers


def bnpass(*arguments: object) -> Cost:
    """Run a command; what it took.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments), "--json", "-q"]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, arguments[:1]))} failed with {process.returncode}: {text}")
    return Cost(seconds, usage.ru_maxrss / 1024, json.loads(text))


if __name__ == "__main__":
    sys.exit(main())
