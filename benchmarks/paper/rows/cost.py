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
NETS = {"mnist_mlp": 300, "deep_sigmoid_mlp": 200, "lenet": 60, "deep_sigmoid_conv": 40,
        "inception": 10}
ROUNDS = 9
AIM = 1.15


def run(ctx: Context) -> list[Line]:
    """One line a reference model; batch 60, SGD with momentum, LRN and Dropout taken out."""
    lines = []
    for name, steps in NETS.items():
        path = MODELS / f"{name}.onnx"
        data = ctx.open("mnist", path).train
        plain, bn = measure(path, data, max(3, round(steps * min(1.0, 4 * ctx.scale))))
        ratio = statistics.median(b / p for p, b in zip(plain, bn, strict=True))
        lines.append(Line(
            f"cost of BN per training step, {name}", f"{statistics.median(plain):.2f} ms",
            f"{statistics.median(bn):.2f} ms", f"x{ratio:.2f} (median of {len(bn)} pairs)",
            "<= x1.15", ratio <= AIM, {"plain": plain, "bn": bn},
        ))
    return lines


def measure(path: Path, data: Data, steps: int) -> tuple[list[float], list[float]]:
    """Milliseconds a step without and with BN, one after the other, several times."""
    stripped = bnpass.strip(path)
    nets = [bnpass.to_torch(stripped), bnpass.to_torch(bnpass.insert(stripped))]
    config = TrainConfig(lr=0.01, batch_size=60, steps=steps, eval_every=steps, log_every=steps,
                         device="cpu")
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for net, times in zip(nets, found, strict=True):
            took = train(net, data, None, config).rows[-1].ms_per_step
            if turn and took is not None:  # the first pair warms up
                times.append(took)
    return found
