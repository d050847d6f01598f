"""Do branches that are trained and then collapsed help a plain network?

    python -m benchmarks.branches --data FOLDER     FOLDER/fashion-mnist holds IDX files
    python -m benchmarks.branches --quick           on the sample that the repository ships

A VGG-like and a residual network as ONNX files, with BN alone and with branches beside each 3x3
convolution (``bnpass insert --branches``): the same weights, data order and steps, each arm at its
best of three rates (chosen on a seed of its own). The second comparison gives BN alone as many
seconds as the branches took. Differences are paired by seed, with a 95 % confidence interval. Every
trained network is folded: the nodes that are left are compared with those of BN alone.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import onnx
import torch
from torch import nn

import bnpass
from benchmarks.common import machine, parser
from benchmarks.paper.jobs import cores
from benchmarks.placement.__main__ import interval
from benchmarks.placement.nets import NETS, nothing
from benchmarks.placement.run import Trial, by_turns, images, logits, train

NETWORKS = ("VGG-like", "ResNet-like")
ARMS = ("BN alone", "repvgg", "acnet")
RATES = (0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Result:
    """What came out: test accuracy, ms a step, and of the folded file BN left, nodes and error."""

    trial: Trial
    accuracy: float
    ms: float
    left: int
    nodes: int
    error: float


@cache
def plain(net: str, seed: int) -> onnx.ModelProto:
    """The network without BN, as a file."""
    torch.manual_seed(seed)
    module = NETS[net](nothing)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        bnpass.export(module, (torch.zeros(2, 1, 14, 14),), path, verify=False)
        return onnx.load(path)


def inserted(net: str, arm: str, seed: int) -> onnx.ModelProto:
    """The network with BN, and with the branches of an arm."""
    branches = "" if arm == ARMS[0] else arm
    return bnpass.insert(plain(net, seed), branches=branches, seed=seed)


def step_ms(net: str, data: str | None) -> dict[str, float]:
    """What a training step of each arm takes."""
    nets: dict[str, nn.Module] = {arm: bnpass.to_torch(inserted(net, arm, 0)) for arm in ARMS}
    return by_turns(nets, 40, data)


def run(trial: Trial) -> Result:
    """Train, calibrate, test, write back, fold."""
    torch.set_num_threads(1)
    x, _, test_x, test_y = images(trial.data)
    model = inserted(trial.net, trial.arm, trial.seed)
    net = bnpass.to_torch(model)
    ms = train(net, trial)
    bnpass.calibrate(net, x[:2000].split(500))
    outputs = logits(net, test_x)
    folded = bnpass.fold(bnpass.write_back(net, model), verify=False)
    wrong = (logits(bnpass.to_torch(folded), test_x[:64]) - outputs[:64]).abs().max()
    left = sum(node.op_type == "BatchNormalization" for node in folded.graph.node)
    accuracy = float((outputs.argmax(1) == test_y).float().mean())
    error = float(wrong / outputs[:64].abs().max())
    return Result(trial, accuracy, ms, left, len(folded.graph.node), error)


def main() -> int:
    """Run both comparisons of every network and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", metavar="FOLDER", help="holds fashion-mnist/ (IDX files)")
    arguments.add_argument("--only", choices=NETWORKS, action="append", help="only this network")
    arguments.add_argument("--steps", type=int, default=700)
    arguments.add_argument("--seeds", type=int, default=8)
    args = arguments.parse_args()
    steps, seeds = (20, 2) if args.quick else (args.steps, args.seeds)
    networks = args.only or NETWORKS
    trials = [Trial(net, arm, "SGD", lr, 0, steps, args.data)
              for net in networks for arm in ARMS for lr in RATES]
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        best = _best(_counted(pool.map(run, trials), len(trials)))
        trials = [replace(chosen.trial, seed=seed)
                  for chosen in best.values() for seed in range(1, seeds + 1)]
        ms = {net: step_ms(net, args.data) for net in networks}
        trials += [_as_long(best[net, ARMS[0]].trial, ms[net], arm, seed)
                   for net in networks for arm in ARMS[1:] for seed in range(1, seeds + 1)]
        done = list(_counted(pool.map(run, trials), len(trials)))
    print("\n".join(table(done, best, ms)))
    if args.output:
        document = {"machine": machine(), "steps": steps, "seeds": seeds,
                    "runs": [asdict(result) for result in done]}
        args.output.write_text(json.dumps(document, indent=1))
    return 0


def _best(results: Iterable[Result]) -> dict[tuple[str, str], Result]:
    """Each arm's run at its best rate."""
    best: dict[tuple[str, str], Result] = {}
    for result in results:
        key = (result.trial.net, result.trial.arm)
        if key not in best or result.accuracy > best[key].accuracy:
            best[key] = result
    return best


def _as_long(alone: Trial, ms: dict[str, float], arm: str, seed: int) -> Trial:
    """BN alone for as many seconds as an arm takes."""
    return replace(alone, seed=seed, steps=round(alone.steps * ms[arm] / ms[ARMS[0]]))


def _counted(results: Iterable[Result], total: int) -> Iterable[Result]:
    for index, result in enumerate(results, 1):
        if index % 10 == 0 or index == total:
            print(f"{index}/{total} runs", file=sys.stderr, flush=True)
        yield result


def table(
    done: list[Result], best: dict[tuple[str, str], Result], ms: dict[str, dict[str, float]]
) -> list[str]:
    """The table in Markdown: a line a network and kind of branches."""
    head = ("| network | branches | BN alone | with branches | equal steps | equal time | ms a step"
            " | BN left | nodes, alone / branches | largest error |")
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    seeds = max(r.trial.seed for r in done)
    arms = [(net, arm) for net, arm in best]
    blocks = {key: done[i * seeds:(i + 1) * seeds] for i, key in enumerate(arms)}
    longer = done[len(arms) * seeds:]
    for i, (net, arm) in enumerate(key for key in arms if key[1] != ARMS[0]):
        alone, ours = blocks[net, ARMS[0]], blocks[net, arm]
        as_long = longer[i * seeds:(i + 1) * seeds]
        lines.append(
            f"| {net} | {arm} | {_mean(alone)} | {_mean(ours)} | {interval(ours, alone)} | "
            f"{interval(ours, as_long)} | {ms[net][ARMS[0]]:.1f} / {ms[net][arm]:.1f} | "
            f"{max(r.left for r in ours)} | {alone[0].nodes} / {ours[0].nodes} | "
            f"{max(r.error for r in ours):.1e} |")
    return lines


def _mean(results: list[Result]) -> str:
    mean = 100 * statistics.mean(r.accuracy for r in results)
    return f"{mean:.2f} (lr {results[0].trial.lr:g})"


if __name__ == "__main__":
    sys.exit(main())
