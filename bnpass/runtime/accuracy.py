"""Which of two models is nearer the truth: both against float64, and how well conditioned they are.

A worst-case error bound says nothing here (the gain of ten 100-wide layers is 1e9); measured errors
against float64 and each layer's |mean| / sigma do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx

from bnpass.onnx_model.attributes import node_name
from bnpass.onnx_model.signature import inputs_of, is_float
from bnpass.report.shown import Shown
from bnpass.report.tables import Table
from bnpass.report.verdicts import shown_accuracy
from bnpass.runtime.batchnorm import is_batch_norm
from bnpass.runtime.cases import Case, RandomPlan, given
from bnpass.runtime.compare import compare, jsonable
from bnpass.runtime.engines import Engine, Float64Engine, Loaded, onnx_engine
from bnpass.runtime.mapping import candidate_feeds, pair_outputs
from bnpass.runtime.tolerance import Tolerance
from bnpass.statistics.onnx_engine import batch_moments

ROUNDING = 6e-7
"""Relative error of a normalised float32 value by its |mean| / sigma, folded or not (measured)."""

_CHANNEL_AXIS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}


@dataclass(frozen=True)
class Conditioning:
    """How much a layer's rounding is amplified when its output is normalised.

    Attributes:
        node: the layer.
        value: what was measured: a BN's input, or the layer's output where no BN follows.
        ratio: the largest |mean| / sigma of its channels; channels that are constant are left out.
        expected: the relative error to expect, ``ROUNDING`` times the ratio.
        rms: root of the mean square of |mean| / sigma over the channels: what reaches the outputs,
            where the channels add up.
    """

    node: str
    value: str
    ratio: float
    expected: float
    rms: float = 0.0


@dataclass(frozen=True)
class Errors:
    """One output's errors, max|a - b| / max|a|, against the reference in float64.

    Attributes:
        reference: of the reference as onnxruntime computes it, not optimised.
        candidate: of the candidate as deployed.
        rewrite: of the candidate in float64: what rounding its weights cost.
    """

    reference: float
    candidate: float
    rewrite: float


@dataclass(repr=False)
class AccuracyReport(Shown):
    """What was measured.

    Attributes:
        nearer: ``"candidate"``, ``"reference"``, or ``"equal"`` when within a factor of 1.5.
        outputs: the errors of each output, the worst over all draws.
        conditioning: layers, the worst first.
        seconds: wall clock.
    """

    nearer: str
    outputs: dict[str, Errors]
    conditioning: list[Conditioning] = field(default_factory=list)
    seconds: float = 0.0

    def shown(self) -> list[Table | str]:
        """What the command prints of it."""
        return shown_accuracy(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the report; JSON-able."""
        return {
            "nearer": self.nearer,
            "outputs": {
                name: {k: jsonable(v) for k, v in asdict(e).items()}
                for name, e in self.outputs.items()
            },
            "conditioning": [asdict(c) for c in self.conditioning],
            "seconds": round(self.seconds, 3),
        }


def measure_accuracy(
    reference: str | os.PathLike[str] | onnx.ModelProto,
    candidate: str | os.PathLike[str] | onnx.ModelProto,
    *,
    data: Iterable[Any] | None = None,
    provider: str = "cpu",
    seed: int = 0,
    draws: int = 3,
    batches: Sequence[int] = (5,),
    limit: int = 8,
) -> AccuracyReport:
    """Compute both models in float64 (torch) and say whose float32 output is nearer.

    Args:
        reference: path or ModelProto; in float64 it is the truth.
        candidate: path or ModelProto.
        data: batches instead of random inputs; the conditioning is only meaningful on real ones.
        provider: the candidate's.
        seed, draws, batches, limit: as in :func:`bnpass.runtime.verify.verify`.

    Raises:
        MissingDependencyError: torch or onnxruntime is missing.
        UnsupportedError: the importer does not know an operator.
        InputError: inputs or outputs of the two do not match.
    """
    start = time.perf_counter()
    left, right = Loaded.load(reference), Loaded.load(candidate)
    truth = Float64Engine(left)
    if data is None:
        cases, _ = RandomPlan(left.proto, seed, draws, tuple(batches), {}).cases(truth)
    else:
        cases = given(data, inputs_of(left.proto), limit, truth)
    pairs = pair_outputs(left.proto, right.proto, {})
    same = {name: name for name in pairs}
    ours = _errors(onnx_engine(left, optimize=False), cases, left, same)
    theirs = _errors(onnx_engine(right, provider=provider), cases, right, pairs)
    rewrite = _errors(Float64Engine(right), cases, right, pairs)
    report = AccuracyReport(
        _nearer(max(ours.values(), default=0.0), max(theirs.values(), default=0.0)),
        {name: Errors(ours[name], theirs[name], rewrite[name]) for name in ours},
        conditioning(reference, [case.feeds for case in cases]),
    )
    report.seconds = time.perf_counter() - start
    return report


def _errors(
    engine: Engine, cases: list[Case], model: Loaded, pairs: dict[str, str]
) -> dict[str, float]:
    worst: dict[str, float] = {}
    for case in cases:
        found = engine.run(candidate_feeds(case.feeds, model.proto))
        for name, other in pairs.items():
            expected = case.expected[name]
            if is_float(expected.dtype):
                error = compare(expected, found[other], Tolerance(0.0, 0.0)).max_rel
                worst[name] = max(worst.get(name, 0.0), error)
    return worst


def _nearer(reference: float, candidate: float) -> str:
    low, high = sorted((reference, candidate))
    if high <= 1.5 * low or high == 0:
        return "equal"
    return "candidate" if candidate < reference else "reference"


def conditioning(
    model: str | os.PathLike[str] | onnx.ModelProto, data: Iterable[Any]
) -> list[Conditioning]:
    """Return the |mean| / sigma of every layer with a channel axis, the worst first.

    Args:
        model: path or ModelProto.
        data: batches, as in :func:`bnpass.statistics.onnx_engine.batch_moments`.
    """
    layers = _layers(Loaded.load(model).proto)
    if not layers:
        return []
    moments = batch_moments(model, [(value, axis) for value, (axis, _) in layers.items()], data)
    found = [Conditioning(layers[v][1], v, *_amplification(*m)) for v, m in moments.items()]
    return sorted(found, key=lambda c: -c.ratio)


def _layers(model: onnx.ModelProto) -> dict[str, tuple[int, str]]:
    """Return (channel axis, name) by the value to measure."""
    producers = {o: n for n in model.graph.node for o in n.output}
    values: dict[str, tuple[int, str]] = {}
    for node in model.graph.node:
        if is_batch_norm(node) and node.input[0] in producers:
            values[node.input[0]] = (1, node_name(producers[node.input[0]]))
        elif node.op_type in _CHANNEL_AXIS and node.domain in ("", "ai.onnx"):
            values.setdefault(node.output[0], (_CHANNEL_AXIS[node.op_type], node_name(node)))
    return values


def _amplification(mean: Any, var: Any) -> tuple[float, float, float]:
    # A channel whose spread is below float32's rounding of its mean is a constant.
    alive = var > (1e-6 * np.abs(mean)) ** 2
    ratios = np.abs(mean[alive]) / np.sqrt(var[alive])
    worst = float(np.max(ratios, initial=0.0))
    rms = float(np.sqrt(np.mean(ratios**2))) if ratios.size else 0.0
    return worst, ROUNDING * worst, rms
