"""Inspect: what a graph holds, what would fold, and what its BatchNorms' statistics say."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bnpass.ir.graph import Graph, Op
from bnpass.passes.biases import existing_biases
from bnpass.passes.fold import FoldPlan, plan_fold
from bnpass.passes.insert import plan_insert
from bnpass.passes.planner import Planner
from bnpass.passes.sites import InsertPlan
from bnpass.report.inspection import shown_inspection
from bnpass.report.shown import Shown
from bnpass.report.tables import Table
from bnpass.rules import MapRefusedError

Numbers = npt.NDArray[Any]

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38}


@dataclass(frozen=True)
class Finding:
    """Something about one operator that its owner would want to know.

    Attributes:
        node: the operator's name.
        level: ``error`` (wrong numbers), ``warning`` (probably not meant) or ``note``.
        message: one line.
        channels: how many channels it concerns; 0 where that makes no sense.
    """

    node: str
    level: str
    message: str
    channels: int = 0


@dataclass(frozen=True, repr=False)
class Inspection(Shown):
    """Facts of one graph.

    Attributes:
        operators: how many there are of each type, the most frequent first.
        inputs, outputs: dimensions by name.
        folds: what would fold.
        sites: where BatchNorms could go.
        findings: what the numbers of the BatchNorms say.
        types: element types of inputs and outputs by name; "" where one is not known.
        subgraphs: bodies of If, Loop and Scan, and functions, which are not looked into.
        parameters: numbers of weights; None: not counted.
        multiply_adds: of one run with free sizes at 1; None: not known.
    """

    operators: dict[str, int]
    inputs: dict[str, list[Any]]
    outputs: dict[str, list[Any]]
    folds: FoldPlan
    sites: InsertPlan
    findings: list[Finding] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    subgraphs: int = 0
    parameters: int | None = None
    multiply_adds: int | None = None

    @property
    def norms(self) -> int:
        """How many BatchNormalizations there are."""
        return self.operators.get("BatchNormalization", 0)

    def shown(self) -> list[Table | str]:
        """What the command prints of it."""
        return shown_inspection(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "operators": self.operators,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "types": self.types,
            "subgraphs": self.subgraphs,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "batch_norms": self.norms,
            "fold": self.folds.to_dict(),
            "insert": self.sites.to_dict(),
            "findings": [asdict(f) for f in self.findings],
        }


def inspect_graph(graph: Graph) -> Inspection:
    """Collect the facts of a graph; nothing is changed."""
    kinds = Counter(op.kind for op in graph.ops_in_order)
    return Inspection(
        operators=dict(kinds.most_common()),
        inputs={name: list(graph.shape(name) or ()) for name in graph.inputs},
        outputs={name: list(graph.shape(name) or ()) for name in graph.outputs},
        folds=plan_fold(graph),
        sites=plan_insert(graph),
        findings=lint(graph),
        types={name: graph.dtype(name) or "" for name in (*graph.inputs, *graph.outputs)},
    )


def lint(graph: Graph) -> list[Finding]:
    """Check the statistics of every BatchNormalization, and the biases in front of it."""
    planner = Planner(graph)
    findings: list[Finding] = []
    for op in graph.ops_in_order:
        if op.kind == "BatchNormalization":
            findings += _lint_norm(op, planner)
    for norm, biased in existing_biases(graph, planner):
        findings.append(
            Finding(biased, "note", f"its bias is dead weight: {norm!r} behind it has a beta")
        )
    return findings


def _lint_norm(op: Op, planner: Planner) -> list[Finding]:
    if op.attrs.get("training"):
        return [Finding(op.name, "warning", "normalises with batch statistics (training_mode=1)")]
    try:
        gamma, beta, mean, var = (planner.context.current(op, i).reshape(-1) for i in (1, 2, 3, 4))
    except MapRefusedError:
        return [Finding(op.name, "note", "its parameters are computed at run time")]
    epsilon = float(op.attrs.get("epsilon", 1e-5))
    limit = _LARGEST.get(planner.graph.dtype(op.inputs[0]) or "", np.inf)
    return lint_numbers(op.name, (gamma, beta, mean, var), epsilon, limit)


def lint_numbers(
    name: str, numbers: tuple[Numbers, Numbers, Numbers, Numbers], epsilon: float, limit: float
) -> list[Finding]:
    """Check the parameters of one BatchNormalization.

    Args:
        name: its name.
        numbers: gamma, beta, mean and variance, (C,) each.
        epsilon: added to the variance.
        limit: the largest number of its type.
    """
    gamma, beta, mean, var = numbers
    checks = [
        ("error", "a parameter is NaN or infinite", ~np.isfinite(gamma + beta + mean + var)),
        ("error", "variance + epsilon is not positive", var + epsilon <= 0),
        ("warning", "the variance is negative", (var < 0) & (var + epsilon > 0)),
        ("warning", "the variance is zero: the channel never varied", var == 0),
        ("note", "the variance is below epsilon, which then sets the scale",
         (var > 0) & (var < epsilon)),
        ("note", "gamma is zero: the channel is constant", gamma == 0),
    ]  # fmt: skip
    found = [Finding(name, level, text, int(bad.sum())) for level, text, bad in checks]
    if (mean == 0).all() and (var == 1).all():
        found.append(
            Finding(name, "warning", "mean 0 and variance 1: never trained or calibrated",
                    len(mean))
        )  # fmt: skip
    with np.errstate(all="ignore"):
        scale = np.abs(gamma) / np.sqrt(np.maximum(var + epsilon, 0))
    over = int(((scale > limit) & (var + epsilon > 0)).sum())
    found.append(Finding(name, "error", "gamma/sqrt(var+eps) overflows the type", over))
    return [f for f in found if f.channels]
