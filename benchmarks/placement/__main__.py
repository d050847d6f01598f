"""Trains small architectures plain, with BN as published, and with bnpass's own sites.

    python -m benchmarks.placement --data FOLDER        FOLDER/fashion-mnist holds IDX files
    python -m benchmarks.placement --quick              on the sample that the repository ships
    python -m benchmarks.placement --cost               what a training step costs, alone
    ... --only LayerNorm --steps 1000 --equal-time      longer, the arm beside ours as many seconds

Per architecture and optimiser each arm takes its best rate of three (one seed of its own, which
counts no more), then trains with several others: the same weights, data order and steps in all
arms. The table gives mean test accuracy, the paired difference of ours and published with a 95 %
confidence interval, the BN left behind the fold, and the ratio of what a training step costs. With
--equal-time the arm that ours is compared with takes more steps, by the ratio that the runs of the
rates showed: as many seconds.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Protocol

from benchmarks.common import machine, parser
from benchmarks.paper.jobs import cores
from benchmarks.placement.nets import NETS
from benchmarks.placement.run import ARMS, Outcome, Trial, cost, run

RATES = {"SGD": (0.01, 0.03, 0.1), "AdamW": (0.001, 0.003, 0.01)}
Key = tuple[str, str, str]
"""A network, an arm, an optimiser."""
COLUMNS = ("network", "optimiser", "BN published / ours", "plain", "published", "ours",
           "ours - published", "BN left", "step")
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}
"""Student's t for 95 % by the number of pairs."""


def main() -> int:
    """Run what the arguments ask for."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", metavar="FOLDER", help="holds fashion-mnist/ (IDX files)")
    arguments.add_argument("--only", action="append", default=[], help="part of a network's name")
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--seeds", type=int, default=6)
    arguments.add_argument("--equal-time", action="store_true",
                           help="the arm beside ours trains as many seconds, not steps")
    arguments.add_argument("--cost", action="store_true",
                           help="only the time of a training step, by turns, over plain's")
    args = arguments.parse_args()
    names = [n for n in NETS if not args.only or any(o.lower() in n.lower() for o in args.only)]
    if args.cost:
        return _costs(names, 3 if args.quick else 40, args.data)
    steps, seeds = (20, 2) if args.quick else (args.steps, args.seeds)
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        best = _choose(pool, names, steps, args.data)
        chosen = {key: outcome.trial.lr for key, outcome in best.items()}
        longer = _longer(best) if args.equal_time else {}
        trials = [Trial(net, arm, opt, lr, seed, round(steps * longer.get((net, arm, opt), 1)),
                        args.data)
                  for (net, arm, opt), lr in chosen.items() for seed in range(1, seeds + 1)]
        done = list(_counted(pool.map(run, trials, chunksize=1), len(trials)))
    lines = table(done, chosen)
    print("\n".join(lines))
    if args.output:
        document = {"machine": machine(), "steps": steps, "seeds": seeds,
                    "runs": [asdict(outcome) for outcome in done]}
        args.output.write_text(json.dumps(document, indent=1))
    return 0


def _costs(names: list[str], rounds: int, data: str | None) -> int:
    print("| network | published / plain | ours / plain |")
    print("|---|---:|---:|")
    for net in names:
        ms = cost(net, rounds, data)
        print(f"| {net} | {ms['published'] / ms['plain']:.2f} | {ms['ours'] / ms['plain']:.2f} |")
    return 0


def _choose(
    pool: ProcessPoolExecutor, names: list[str], steps: int, data: str | None
) -> dict[Key, Outcome]:
    """Each arm's run at its best rate, on a seed of its own."""
    trials = [Trial(net, arm, opt, lr, 0, steps, data) for net in names for arm in ARMS
              for opt, rates in RATES.items() for lr in rates
              if arm != "published" or "LayerNorm" not in net]
    best: dict[Key, Outcome] = {}
    for outcome in _counted(pool.map(run, trials, chunksize=1), len(trials)):
        key = (outcome.trial.net, outcome.trial.arm, outcome.trial.optimizer)
        if key not in best or outcome.accuracy > best[key].accuracy:
            best[key] = outcome
    return best


def _longer(best: dict[Key, Outcome]) -> dict[Key, float]:
    """How many times ours' steps each other arm takes in the same time."""
    ours = {(net, opt): run.ms for (net, arm, opt), run in best.items() if arm == "ours"}
    return {key: ours[key[0], key[2]] / run.ms for key, run in best.items() if key[1] != "ours"}


def _counted(outcomes: Iterable[Outcome], total: int) -> Iterable[Outcome]:
    for index, outcome in enumerate(outcomes, 1):
        if index % 20 == 0 or index == total:
            print(f"{index}/{total} runs", file=sys.stderr, flush=True)
        yield outcome


def table(done: list[Outcome], chosen: dict[Key, float]) -> list[str]:
    """The table in Markdown: a line a network and optimiser."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for net, opt in dict.fromkeys((net, opt) for net, _, opt in chosen):
        arms = {arm: [o for o in done if (o.trial.net, o.trial.arm, o.trial.optimizer)
                      == (net, arm, opt)] for arm in ARMS}
        counts = " / ".join(str(arms[a][0].norms) if arms[a] else "0" for a in ARMS[1:])
        means = [_mean(arms[arm], chosen.get((net, arm, opt))) for arm in ARMS]
        other = arms["published"] or arms["plain"]
        lines.append(f"| {net} | {opt} | {counts} | {' | '.join(means)} | "
                     f"{interval(arms['ours'], other)}{'' if arms['published'] else ' (plain)'} | "
                     f"{max(o.left for o in arms['ours'])} | {_cost(arms['ours'], other)} |")
    return lines


def _mean(outcomes: list[Outcome], lr: float | None) -> str:
    if not outcomes:
        return "-"
    return f"{100 * statistics.mean(o.accuracy for o in outcomes):.1f} (lr {lr:g})"


def _cost(ours: list[Outcome], other: list[Outcome]) -> str:
    """The median of the ratios of a training step's time."""
    return f"{statistics.median(a.ms / b.ms for a, b in zip(ours, other, strict=True)):.2f}"


class Tested(Protocol):
    """A run that ended with an accuracy."""

    @property
    def accuracy(self) -> float:
        """A share."""


def interval(ours: Sequence[Tested], other: Sequence[Tested]) -> str:
    """The mean paired difference in points, and half of its 95 % confidence interval."""
    pairs = [100 * (a.accuracy - b.accuracy) for a, b in zip(ours, other, strict=True)]
    if len(pairs) < 2:
        return f"{pairs[0]:+.1f}"
    t = T95.get(len(pairs), 2.0)
    half = t * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{statistics.mean(pairs):+.2f} ± {half:.2f}"


if __name__ == "__main__":
    sys.exit(main())
