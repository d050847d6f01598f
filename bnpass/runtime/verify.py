"""Verification: two models side by side on the same inputs, the reference never optimised."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from bnpass.errors import InputError, VerificationError
from bnpass.onnx_model.signature import Port, inputs_of
from bnpass.runtime.batchnorm import in_training_mode
from bnpass.runtime.cases import Case, RandomPlan, given, ports_of_data
from bnpass.runtime.compare import Comparison, compare, merge
from bnpass.runtime.difference import Difference, first_difference
from bnpass.runtime.engines import Engine, Loaded, TorchEngine, is_module, onnx_engine
from bnpass.runtime.inputs import Feeds
from bnpass.runtime.mapping import candidate_feeds, pair_outputs
from bnpass.runtime.tolerance import Tolerance, tolerance

Verifiable = str | os.PathLike[str] | onnx.ModelProto | Any
"""A model file, a ModelProto or a torch module."""


@dataclass
class VerifyReport:
    """What a verification found.

    Attributes:
        passed: every output passed on every draw.
        outputs: the worst comparison of each output, by the reference's name of it.
        mapping: the candidate's name of each output.
        rule: the tolerance that was applied.
        first_difference: on failure, the first tensor that differs; None if it cannot be told.
        reference_engine: ``"onnxruntime"`` (graph optimizations off), ``"bnpass float64"``,
            ``"torch float64"`` or ``"torch"``.
        candidate_engine: likewise, optimizations on.
        provider: where the candidate ran.
        draws: a line for each set of inputs.
        notes: what weakens the proof, in words.
        seconds: what the verification cost, wall clock.
    """

    passed: bool
    outputs: dict[str, Comparison]
    mapping: dict[str, str]
    rule: Tolerance
    first_difference: Difference | None
    reference_engine: str
    candidate_engine: str
    provider: str
    draws: list[str]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report; JSON-able."""
        first = self.first_difference
        return {
            "passed": self.passed,
            "outputs": {name: c.to_dict() for name, c in self.outputs.items()},
            "mapping": self.mapping,
            "rtol": self.rule.rtol,
            "atol": self.rule.atol,
            "dtype": self.rule.dtype,
            "first_difference": first.to_dict() if first else None,
            "reference_engine": self.reference_engine,
            "candidate_engine": self.candidate_engine,
            "provider": self.provider,
            "draws": self.draws,
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }

    def raise_if_failed(self) -> None:
        """Raise VerificationError, naming the worst output, unless the verification passed."""
        if self.passed:
            return
        name, worst = next((n, c) for n, c in self.outputs.items() if not c.passed)
        where = self.first_difference
        at = f", first at {where.value!r} ({where.kind} {where.node!r})" if where else ""
        what = "NaN or Inf" if worst.nonfinite else f"max relative error {worst.max_rel:.2g}"
        raise VerificationError(
            f"the two models differ: output {name!r}, {what}{at}",
            f"it would pass with rtol {worst.tolerance:.2g}, the limit is {self.rule.rtol:.2g}",
        )


def verify(
    reference: Verifiable,
    candidate: Verifiable,
    *,
    data: Iterable[Any] | None = None,
    provider: str = "cpu",
    seed: int = 0,
    draws: int = 3,
    batches: Sequence[int] = (2, 5),
    rtol: float | None = None,
    atol: float | None = None,
    dims: Mapping[str, int] | None = None,
    mapping: Mapping[str, str] | None = None,
    changed: Collection[str] = (),
    limit: int = 8,
    threads: int | None = None,
    tf32: bool = False,
    optimize: bool = True,
    locate: bool = True,
    prepare: Callable[[Feeds], Feeds] | None = None,
) -> VerifyReport:
    """Compare two models on the same inputs.

    The reference runs on the CPU with onnxruntime's graph optimizations disabled, the candidate
    as it will be deployed. Where onnxruntime has no kernel, a stand-in runs and the report says so.

    Args:
        reference: what is right: a path, a ModelProto or a torch module (run in eval mode).
        candidate: what is to be proved, likewise.
        data: batches (array, tuple or mapping by input name) instead of random inputs.
        provider: of the candidate: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        seed: of the random inputs.
        draws: random draws: normal, uniform in [0, 1), extreme but legal, and again.
        batches: batch sizes of each draw, where the batch is free.
        rtol: relative tolerance; None derives it from the models' coarsest type.
        atol: absolute tolerance; likewise.
        dims: sizes of symbolic dimensions by name.
        mapping: candidate's output by the reference's, where their names differ.
        changed: values whose meaning a rewrite changed, not to be blamed.
        limit: how many batches of ``data`` are used.
        threads: of the candidate's session.
        tf32: allow it in the candidate's session on CUDA.
        optimize: the candidate's graph optimizations, which take onnxruntime quadratic time (about
            a minute at 20,000 nodes).
        locate: on failure, look for the first tensor that differs.
        prepare: brings random inputs into the range that the models are meant for.

    Raises:
        InputError: inputs or outputs of the two do not match, or no legal input was found.
        MissingDependencyError: the provider or a package is missing.
    """
    start = time.perf_counter()
    left, right = _load(reference), _load(candidate)
    models = [m.proto for m in (left, right) if m is not None]
    rule = tolerance(models, rtol, atol)
    ports = inputs_of(models[0]) if models else ports_of_data(data)
    first = _engine(reference, left, ports, optimize=False)
    if data is None:
        if not models:
            raise InputError("two torch modules have no input signature", "give inputs with data=")
        plan = RandomPlan(models[0], seed, draws, tuple(batches), dict(dims or {}), prepare)
        cases = plan.cases(first)
    else:
        cases = given(data, ports, limit, first)
    notes = [*_batch_statistics(right), *_weaknesses(first, cases)]
    kind_of_reference = first.kind
    del first  # its weights go before the candidate's come
    options = {"provider": provider, "threads": threads, "tf32": tf32, "optimize": optimize}
    second = _engine(candidate, right, ports, **options)
    protos = [m.proto if m else None for m in (left, right)]
    pairs = pair_outputs(protos[0], protos[1], mapping or {})
    report, failed = _judge(second, cases, right, pairs, rule)
    report.notes[:0] = notes
    report.reference_engine, report.provider = kind_of_reference, provider
    if failed and left and right and locate:
        report.first_difference = _locate(left, right, failed, report, changed, options)
    report.seconds = time.perf_counter() - start
    return report


def _load(model: Verifiable) -> Loaded | None:
    return None if is_module(model) else Loaded.of(model)


def _engine(model: Verifiable, loaded: Loaded | None, ports: list[Port], **options: Any) -> Engine:
    if loaded is not None:
        return onnx_engine(loaded, **options)
    return TorchEngine(model, [p.name for p in ports])


def _batch_statistics(candidate: Loaded | None) -> Iterator[str]:
    for name in in_training_mode(candidate.proto) if candidate is not None else ():
        yield (f"BatchNormalization {name!r} of the candidate is in training mode: it uses the "
               "statistics of the batch at hand")  # fmt: skip


def _weaknesses(engine: Engine, cases: list[Case]) -> list[str]:
    notes = []
    if engine.kind not in ("onnxruntime", "torch"):
        notes.append(f"onnxruntime has no kernel for the reference: {engine.kind} stands in for it")
    again = engine.run(cases[0].feeds)
    if any(_unequal(cases[0].expected[n], again[n]) for n in again):
        notes.append("the reference itself is not deterministic: two runs on one input differ")
    return notes


def _unequal(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.shape != b.shape or a.tobytes() != b.tobytes()


def _judge(
    engine: Engine,
    cases: list[Case],
    loaded: Loaded | None,
    pairs: dict[str, str],
    rule: Tolerance,
) -> tuple[VerifyReport, list[tuple[Case, list[str]]]]:
    """Run the candidate on every case; return the report and the cases that failed."""
    outputs: dict[str, Comparison] = {}
    failed = []
    for case in cases:
        actual = engine.run(candidate_feeds(case.feeds, loaded.proto if loaded else None))
        pairs = pairs or _by_position(case.expected, actual)
        bad = []
        for name, other in pairs.items():
            found = _compare(name, case.expected[name], actual[other], rule)
            outputs[name] = merge(outputs[name], found) if name in outputs else found
            if not found.passed:
                bad.append(name)
        if bad:
            failed.append((case, bad))
    report = VerifyReport(
        passed=not failed,
        outputs=outputs,
        mapping=pairs,
        rule=rule,
        first_difference=None,
        reference_engine="",
        candidate_engine=engine.kind,
        provider="",
        draws=[case.label for case in cases],
        notes=list(_doubts(cases, outputs)),
    )
    return report, failed


def _compare(name: str, a: Any, b: Any, rule: Tolerance) -> Comparison:
    if a.shape != b.shape:
        raise InputError(
            f"output {name!r} has shape {a.shape} in the reference and {b.shape} in the candidate",
            "the two models do not compute the same thing",
        )
    return compare(a, b, rule)


def _by_position(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> dict[str, str]:
    """Pair outputs when one side is a torch module, whose outputs have no names."""
    if set(expected) == set(actual):
        return {name: name for name in expected}
    if len(expected) != len(actual):
        raise InputError(
            f"the reference has {len(expected)} outputs, the candidate {len(actual)}",
            "give models with the same outputs",
        )
    return dict(zip(expected, actual, strict=True))


def _doubts(cases: list[Case], outputs: dict[str, Comparison]) -> Iterator[str]:
    for name, found in outputs.items():
        values = [c.expected[name] for c in cases]
        if found.compared > 1 and all(not np.isfinite(_as_float(v)).any() for v in values):
            yield f"output {name!r} is NaN or Inf everywhere in the reference: nothing is proved"
        elif found.compared > 1 and not found.varies:
            yield f"output {name!r} does not vary with the input: little is proved"


def _as_float(array: Any) -> Any:
    return array.astype(np.float64) if array.dtype.kind not in "OUSc" else np.zeros(array.shape)


def _locate(
    left: Loaded,
    right: Loaded,
    failed: list[tuple[Case, list[str]]],
    report: VerifyReport,
    changed: Collection[str],
    options: dict[str, Any],
) -> Difference | None:
    case, names = failed[0]
    found = first_difference(
        left,
        right,
        case.feeds,
        candidate_feeds(case.feeds, right.proto),
        names,
        report.rule,
        changed,
        **options,
    )
    if found is None:
        report.notes.append(
            "no common intermediate value differs: the fault is in values that only one of the "
            "models has, or in onnxruntime's own fusions"
        )
    return found
