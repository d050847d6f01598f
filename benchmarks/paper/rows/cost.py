"""What BN costs per training step on this CPU, the two networks measured in turn."""

from __future__ import annotations

import statistics
from pathlib import Path

import bnpass
from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.results import Line
from bnpass.data import Data
from bnpass.training import TrainConfig, train

NAME = "cost"
MINUTES = 3
ALONE = True
NETS = {"mnist_mlp": 150, "deep_sigmoid_mlp": 100, "lenet": 30, "deep_sigmoid_conv": 20,
        "inception": 5}
ROUNDS = 21
AIM = 1.15


def run(ctx: Context) -> list[Line]:
    """One line a reference model; batch 60, SGD with momentum, LRN and Dropout taken out."""
    import torch

    threads = torch.get_num_threads()
    lines = []
    for name, steps in NETS.items():
        path = MODELS / f"{name}.onnx"
        data = ctx.open("mnist", path).train
        plain, bn = measure(path, data, max(3, round(steps * min(1.0, 4 * ctx.scale))))
        low, ratio, high = quartiles([b / p for p, b in zip(plain, bn, strict=True)])
        ctx.log(f"{name}: x{ratio:.2f}")
        lines.append(Line(
            f"cost of BN per training step, {name}, {threads} threads",
            f"{statistics.median(plain):.2f} ms", f"{statistics.median(bn):.2f} ms",
            f"x{ratio:.2f} (median of {len(bn)} pairs, half of them x{low:.2f} to x{high:.2f})",
            "<= x1.15", ratio <= AIM,
            {"plain": plain, "bn": bn, "ratio": ratio, "threads": threads},
        ))
    return lines


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The {25, 50, 75}th percentiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def measure(path: Path, data: Data, steps: int) -> tuple[list[float], list[float]]:
    """Milliseconds a step without and with BN: pairs of short runs, each arm first by turns."""
    stripped = bnpass.strip(path)
    nets = [bnpass.to_torch(stripped), bnpass.to_torch(bnpass.insert(stripped))]
    config = TrainConfig(lr=0.01, batch_size=60, steps=steps, eval_every=steps, log_every=steps,
                         device="cpu")
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for arm in ((0, 1), (1, 0))[turn % 2]:
            took = train(nets[arm], data, None, config).rows[-1].ms_per_step
            if turn and took is not None:  # the first pair warms up
                found[arm].append(took)
    return found
