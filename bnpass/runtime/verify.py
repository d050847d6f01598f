"""Verification: two models side by side on the same inputs, and three questions about them.

1. Is every edit right? Asked by the commands that edit (:mod:`bnpass.verdict.proof`).
2. Does the whole compute the same in float32? Both plain, judged by the network's own noise.
3. Does onnxruntime's optimizer keep it? The candidate as deployed against itself plain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from bnpass.errors import InputError
from bnpass.onnx_model.signature import inputs_of
from bnpass.runtime.batchnorm import in_training_mode
from bnpass.runtime.cases import Case, RandomPlan, given, ports_of_data
from bnpass.runtime.child import CrashError, LimitError
from bnpass.runtime.engines import Engine, Loaded
from bnpass.runtime.hangs import raise_if_hung
from bnpass.runtime.inputs import Feeds
from bnpass.runtime.pair import ModelPair, Verifiable
from bnpass.runtime.verification import VerifyReport
from bnpass.verdict.budget import Budget
from bnpass.verdict.findings import ProofReport


def verify(
    reference: Verifiable, candidate: Verifiable, *,
    data: Iterable[Any] | None = None, provider: str = "cpu", seed: int = 0, draws: int = 3,
    batches: Sequence[int] = (2, 5), rtol: float | None = None, atol: float | None = None,
    dims: Mapping[str, int] | None = None, mapping: Mapping[str, str] | None = None,
    changed: Collection[str] = (), limit: int = 8, threads: int | None = None, tf32: bool = False,
    optimize: bool = True, locate: bool = True, prepare: Callable[[Feeds], Feeds] | None = None,
    budget: float | None = None, edits: ProofReport | None = None, alternate: bool = False,
    says: Callable[[str], None] = lambda _: None,
    provider_options: Mapping[str, str] = MappingProxyType({}),
) -> VerifyReport:
    """Compare two models on the same inputs.

    Both run on the CPU with onnxruntime's graph optimizations disabled, and are compared by the
    network's own noise: how far the reference's outputs move when its numbers move by a rounding.
    Then the candidate runs as it will be deployed and is compared with itself. Where onnxruntime
    has no kernel, or crashes, a stand-in runs and the report says so.

    Args:
        reference: what is right: a path, a ModelProto or a torch module (run in eval mode).
        candidate: what is to be proved, likewise.
        data: batches (array, tuple or mapping by input name) instead of random inputs.
        provider: of the candidate: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        seed: of the random inputs.
        draws: random draws: normal, uniform in [0, 1), extreme but legal, and again.
        batches: batch sizes of each draw, where the batch is free.
        rtol: relative tolerance; given, it judges instead of the noise.
        atol: absolute tolerance; likewise.
        dims: sizes of symbolic dimensions by name.
        mapping: candidate's output by the reference's, where their names differ.
        changed: values whose meaning a rewrite changed, not to be blamed.
        limit: how many batches of ``data`` are used.
        threads: of the candidate's session.
        tf32: allow it in the candidate's session on CUDA.
        optimize: also ask whether onnxruntime's graph optimizations keep the candidate.
        locate: on failure, look for the first tensor that differs.
        prepare: brings random inputs into the range that the models are meant for.
        budget: seconds that all this may take; what does not fit is left out and said.
        edits: the answer to question 1, to be reported along.
        alternate: each draw has one of the batch sizes, in turn.
        says: is told what is being done.
        provider_options: onnxruntime's own options of the candidate's provider.

    Raises:
        InputError: inputs or outputs of the two do not match, no legal input was found, or a loop
            does not end.
        MissingDependencyError: the provider or a package is missing.
    """
    start = time.perf_counter()
    time_left = Budget(budget)
    proven = edits is not None and edits.passed and not edits.open
    pair = ModelPair(reference, candidate, dict(mapping or {}), rtol, atol, proven=proven)
    pair.says = says
    plan = RandomPlan(
        pair.models[0], seed, draws, tuple(batches), dict(dims or {}), prepare, alternate
    ) if pair.models else None  # fmt: skip
    try:
        cases, notes = _cases(pair, time_left, data, limit, plan)
        report = pair.compare(cases, time_left, seed)
    except LimitError as error:
        raise_if_hung(error, pair.running(), budget)
        if budget is None:
            raise
        report, cases = pair.nothing(), []
        time_left.leave_out(f"running the whole network: {error.message}")
        notes = []
    report.notes[:0] = notes
    report.provider, report.edits = provider, edits
    if not report.same and locate:
        report.first_difference = pair.locate(report, changed)
    options = {"provider": provider, "threads": threads, "tf32": tf32,
               "provider_options": dict(provider_options)}
    if optimize and report.same and cases:
        says("verifying: what onnxruntime's optimizer makes of it")
        report.optimizer = pair.deployed(cases, time_left, report, options)
    pair.close()
    report.left_out = time_left.left_out
    report.settle()
    report.seconds = time.perf_counter() - start
    return report


def _cases(
    pair: ModelPair, time_left: Budget, data: Iterable[Any] | None, limit: int,
    plan: RandomPlan | None,
) -> tuple[list[Case], list[str]]:
    """The inputs with what the reference makes of them, and what weakens them as a proof."""
    pair.ports = inputs_of(pair.models[0]) if pair.models else ports_of_data(data)
    try:
        return _run_reference(pair, time_left, data, limit, plan)
    except CrashError as crash:
        if pair.left is None:
            raise
        pair.stand_in(crash)
        found, notes = _run_reference(pair, time_left, data, limit, plan)
        return found, [f"{crash.message}: {pair.reference.kind} stands in for it", *notes[1:]]


def _run_reference(
    pair: ModelPair, time_left: Budget, data: Iterable[Any] | None, limit: int,
    plan: RandomPlan | None,
) -> tuple[list[Case], list[str]]:
    first = pair.open_reference(time_left)
    if data is not None:
        cases = given(data, pair.ports, limit, first)
    elif plan is None:
        raise InputError("two torch modules have no input signature", "give inputs with data=")
    else:
        cases, left = plan.cases(first, lambda cost: time_left.allows(0.3, 2 * cost))
        if left:
            time_left.leave_out(f"{left} draws of inputs behind the first {len(cases)}")
    notes = [*_batch_statistics(pair.right), *_weaknesses(first, cases)]
    return cases, notes


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
