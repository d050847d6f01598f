"""What a repair gives back of damaged networks: no labels, no gradient.

    python -m benchmarks.repair --data FOLDER       FOLDER/fashion-mnist holds IDX files
    python -m benchmarks.repair --quick             on the sample that the repository ships

Three small networks are trained with BN, calibrated and folded: files without BN. Their weights are
rounded to 4, 3 and 2 bits (symmetric, one scale a tensor), pruned to their larger half (each tensor
by itself), or averaged with those of a second run from the same start on other batches. Then
``bnpass repair`` with 1,000 training images. Accuracy on the test images, mean and worst of the
seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context

import numpy as np
import onnx
import torch
from onnx import numpy_helper

import bnpass
from benchmarks.branches import plain
from benchmarks.common import machine, parser
from benchmarks.paper.jobs import cores
from benchmarks.placement.run import Trial, images, logits, train

NETWORKS = ("VGG-like", "ResNet-like", "MLP, sigmoid")
SAMPLES = 1000


@dataclass(frozen=True)
class Result:
    """Test accuracies of one damage."""

    net: str
    damage: str
    seed: int
    whole: float
    damaged: float
    repaired: float


def trained(trial: Trial, order: int) -> onnx.ModelProto:
    """A network without BN that was trained with it; ``order`` seeds the batches."""
    x = images(trial.data)[0]
    model = bnpass.insert(plain(trial.net, trial.seed))
    net = bnpass.to_torch(model)
    train(net, replace(trial, seed=order))
    bnpass.calibrate(net, x[:2000].split(500))
    return bnpass.fold(bnpass.write_back(net, model), verify=False)


def rounded(bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """Weights on a symmetric grid of so many bits."""
    def damage(w: np.ndarray) -> np.ndarray:
        step = abs(w).max() / (2 ** (bits - 1) - 1)
        return (np.round(w / step) * step).astype(w.dtype)
    return damage


def pruned(w: np.ndarray) -> np.ndarray:
    """The larger half of the weights."""
    return np.where(abs(w) >= np.median(abs(w)), w, 0).astype(w.dtype)


DAMAGES = {"4 bits": rounded(4), "3 bits": rounded(3), "2 bits": rounded(2), "half pruned": pruned}


def with_weights(
    model: onnx.ModelProto, change: Callable[[str, np.ndarray], np.ndarray]
) -> onnx.ModelProto:
    """A copy whose filters and matrices are others; biases stay."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(change(tensor.name, array), tensor.name))
    return copy


def averaged(one: onnx.ModelProto, other: onnx.ModelProto) -> onnx.ModelProto:
    """The mean of two networks of one graph, biases too."""
    weights = {t.name: numpy_helper.to_array(t) for t in other.graph.initializer}
    copy = onnx.ModelProto()
    copy.CopyFrom(one)
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f":
            mean = ((array + weights[tensor.name]) / 2).astype(array.dtype)
            tensor.CopyFrom(numpy_helper.from_array(mean, tensor.name))
    return copy


def run(trial: Trial) -> list[Result]:
    """Train a network, damage it in every way, repair."""
    torch.set_num_threads(1)
    x, _, test_x, test_y = images(trial.data)
    data = [part.numpy() for part in x[:SAMPLES].split(500)]

    def accuracy(model: onnx.ModelProto) -> float:
        found = logits(bnpass.to_torch(model), test_x).argmax(1)
        return float((found == test_y).float().mean())

    model = trained(trial, trial.seed)
    damaged = {name: with_weights(model, lambda _, w, change=change: change(w))
               for name, change in DAMAGES.items()}
    damaged["average of two"] = averaged(model, trained(trial, trial.seed + 100))
    whole = accuracy(model)
    return [Result(trial.net, name, trial.seed, whole, accuracy(bad),
                   accuracy(bnpass.repair(model, bad, data)))
            for name, bad in damaged.items()]


def main() -> int:
    """Run every network and seed; print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", metavar="FOLDER", help="holds fashion-mnist/ (IDX files)")
    arguments.add_argument("--steps", type=int, default=400)
    arguments.add_argument("--seeds", type=int, default=3)
    args = arguments.parse_args()
    steps, seeds = (40, 1) if args.quick else (args.steps, args.seeds)
    trials = [Trial(net, "BN", "SGD", 0.1, seed, steps, args.data)
              for net in NETWORKS for seed in range(1, seeds + 1)]
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        done = [result for results in pool.map(run, trials) for result in results]
    print("\n".join(table(done)))
    if args.output:
        document = {"machine": machine(), "steps": steps, "runs": [asdict(r) for r in done]}
        args.output.write_text(json.dumps(document, indent=1))
    return 0


def table(done: list[Result]) -> list[str]:
    """In Markdown: a line a network and damage."""
    lines = ["| network | damage | whole | damaged | repaired |", "|---|---|---:|---:|---:|"]
    for net, damage in dict.fromkeys((r.net, r.damage) for r in done):
        rows = [r for r in done if (r.net, r.damage) == (net, damage)]
        cells = [_cell(values) for values in ([r.whole for r in rows], [r.damaged for r in rows],
                                              [r.repaired for r in rows])]  # fmt: skip
        lines.append(f"| {net} | {damage} | {' | '.join(cells)} |")
    return lines


def _cell(values: Iterable[float]) -> str:
    """The mean, and the worst behind it."""
    found = [100 * v for v in values]
    return f"{statistics.mean(found):.1f} ({min(found):.1f})"


if __name__ == "__main__":
    sys.exit(main())
