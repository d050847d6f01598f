"""Verification: two models side by side on the same inputs, and three questions about them.

1. Is every edit right? Asked by the commands that edit (:mod:`bnpass.verdict.proof`).
2. Does the whole compute the same in float32? Both plain, judged by the network's own noise.
3. Does onnxruntime's optimizer keep it? The candidate as deployed against itself plain.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from bnpass.errors import BnpassError, InputError, VerificationError
from bnpass.onnx_model.signature import Port, inputs_of
from bnpass.report.shown import Shown
from bnpass.report.tables import Table
from bnpass.report.verdicts import shown_verify
from bnpass.runtime.batchnorm import in_training_mode
from bnpass.runtime.cases import Case, RandomPlan, given, ports_of_data
from bnpass.runtime.child import CrashError, LimitError
from bnpass.runtime.compare import Comparison
from bnpass.runtime.difference import Difference, first_difference
from bnpass.runtime.engines import (
    Engine,
    Loaded,
    TorchEngine,
    close,
    is_module,
    onnx_engine,
    stand_in,
)
from bnpass.runtime.hangs import raise_if_hung
from bnpass.runtime.inputs import Feeds
from bnpass.runtime.mapping import candidate_feeds, pair_outputs
from bnpass.runtime.parts import worth_it
from bnpass.runtime.tolerance import Tolerance, tolerance
from bnpass.verdict import optimizer
from bnpass.verdict.budget import Budget
from bnpass.verdict.findings import ProofReport
from bnpass.verdict.noise import moved_feeds, moved_weights, stepped_outputs
from bnpass.verdict.optimizer import OptimizerReport
from bnpass.verdict.whole import BLIND, Judge, excess, joined

Verifiable = str | os.PathLike[str] | onnx.ModelProto | Any
"""A model file, a ModelProto or a torch module."""


@dataclass(repr=False)
class VerifyReport(Shown):
    """What a verification found.

    Attributes:
        passed: no question has the answer no.
        outputs: question 2: the worst comparison of each output, by the reference's name of it.
        mapping: the candidate's name of each output.
        rule: the tolerance of the models' coarsest type, or what the caller gave.
        first_difference: on failure, the first tensor that differs; None if it cannot be told.
        reference_engine: ``"onnxruntime"`` (graph optimizations off), ``"bnpass float64"``,
            ``"torch float64"`` or ``"torch"``.
        candidate_engine: likewise.
        provider: where the candidate is deployed.
        draws: a line for each set of inputs.
        notes: what weakens the proof, in words.
        edits: question 1, where the edits are known.
        optimizer: question 3; None where it was not asked.
        noise_draws: draws from which the network's noise was taken; 0: the rule judged.
        left_out: what the budget left no time for.
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
    edits: ProofReport | None = None
    optimizer: OptimizerReport | None = None
    noise_draws: int = 0
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def same(self) -> bool:
        """The answer to question 2."""
        return all(found.passed for found in self.outputs.values())

    def settle(self) -> None:
        """Set :attr:`passed` from the three answers."""
        parts = (self.edits, self.optimizer)
        self.passed = self.same and all(p.passed for p in parts if p is not None)

    def shown(self) -> list[Table | str]:
        """What the command prints of it."""
        return shown_verify(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the report; JSON-able."""
        first = self.first_difference
        return {
            "passed": self.passed,
            "answers": {
                "edits": self.edits.to_dict() if self.edits else None,
                "whole": {"passed": self.same, "noise_draws": self.noise_draws}
                if self.outputs else None,
                "optimizer": self.optimizer.to_dict() if self.optimizer else None,
                "left_out": self.left_out,
            },
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
        }  # fmt: skip

    def raise_if_failed(self) -> None:
        """Raise VerificationError, naming what is wrong, unless the verification passed."""
        if self.passed:
            return
        if self.edits is not None and self.edits.failures:
            raise VerificationError(*_wrong_edit(self.edits))
        if not self.same:
            raise VerificationError(*self._difference())
        assert self.optimizer is not None
        named = self.optimizer.optimizer or "some of its optimizers together"
        raise VerificationError(
            f"onnxruntime's optimizer changes what the result computes: output "
            f"{self.optimizer.output!r} by {self.optimizer.difference:.3g} times what is allowed "
            f"({named}); the original's it leaves as they are",
            f"run it with disabled_optimizers=[{self.optimizer.optimizer!r}], or leave the layer "
            "out with --skip",
        )

    def _difference(self) -> tuple[str, str]:
        name, worst = next((n, c) for n, c in self.outputs.items() if not c.passed)
        where = self.first_difference
        at = f", first at {where.value!r} ({where.kind} {where.node!r})" if where else ""
        if worst.nonfinite:
            what = f"NaN or Inf in {worst.nonfinite} entries where the reference has none"
        elif worst.steps:
            what = f"{worst.steps} of {worst.compared} entries are another step"
        else:
            what = f"max relative error {worst.max_rel:.2g}"
        if worst.ratio is not None and not worst.nonfinite:
            what += f", {worst.ratio:.3g} times the network's own noise"
        limit = worst.limit / worst.scale if worst.scale else 0.0
        return (
            f"the two models differ: output {name!r}, {what}{at}",
            f"it would pass with rtol {worst.tolerance:.2g}, the limit is {limit:.2g}",
        )


def _wrong_edit(edits: ProofReport) -> tuple[str, str]:
    worst = edits.failures[0]
    at = "" if worst.channel is None else f" in channel {worst.channel}"
    more = f", and {len(edits.failures) - 1} more" if len(edits.failures) > 1 else ""
    what = (
        f"the two models differ: the edit at {worst.node!r} is wrong: it changes {worst.value!r}"
        f"{at} by {worst.difference:.3g}, {worst.ratio:.3g} times what rounding its weights "
        f"explains{more}"
    )
    return (
        what,
        f"nodes {', '.join(worst.nodes[:6])}; leave them out with --skip, and report this",
    )


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
    pair = _Pair(reference, candidate, dict(mapping or {}), rtol, atol, proven=proven)
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
    pair: _Pair, time_left: Budget, data: Iterable[Any] | None, limit: int, plan: RandomPlan | None
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
    pair: _Pair, time_left: Budget, data: Iterable[Any] | None, limit: int, plan: RandomPlan | None
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


class _Pair:
    """The two models of a verification, and the engines that run them."""

    def __init__(
        self, reference: Verifiable, candidate: Verifiable, mapping: dict[str, str],
        rtol: float | None, atol: float | None, *, proven: bool = False,
    ) -> None:
        self.given, self.proven = (reference, candidate), proven
        self.left, self.right = _load(reference), _load(candidate)
        self.models = [m.proto for m in (self.left, self.right) if m is not None]
        self.rule = tolerance(self.models, rtol, atol)
        self.ports: list[Port] = []
        kinds = {tolerance([m]).dtype for m in self.models}
        self.own = (
            rtol is None and atol is None and len(self.models) == 2 and kinds == {"float32"}
        )
        protos = [m.proto if m else None for m in (self.left, self.right)]
        self.names = pair_outputs(protos[0], protos[1], mapping)
        stepped = [stepped_outputs(m) for m in self.models]
        found = set().union(*stepped) if self.own else set()
        self.judge = Judge(self.names, self.rule, self.own, found, proven=proven)
        self._engines: dict[str, Engine] = {}
        self.says: Callable[[str], None] = lambda _: None

    # --- engines

    def open_reference(self, time_left: Budget) -> Engine:
        """The reference, plain."""
        if "reference" not in self._engines:
            options = {} if self.left is None else {"limits": time_left.limits()}
            self._engines["reference"] = self._engine(0, self.left, optimize=False, **options)
        return self._engines["reference"]

    @property
    def reference(self) -> Engine:
        """The reference's engine."""
        return self._engines["reference"]

    def running(self) -> Loaded | None:
        """The model whose turn it is in question 2."""
        return self.right if "reference" not in self._engines else self.left

    def stand_in(self, cause: BnpassError) -> None:
        """Something else than onnxruntime for the reference, which has crashed."""
        assert self.left is not None
        self._engines["reference"] = stand_in(self.left, cause)

    def _engine(self, side: int, loaded: Loaded | None, **options: Any) -> Engine:
        if loaded is not None:
            return onnx_engine(loaded, **options)
        return TorchEngine(self.given[side], [p.name for p in self.ports])

    def close(self) -> None:
        """Free what the engines hold."""
        for engine in self._engines.values():
            close(engine)
        self._engines.clear()

    def _drop(self, name: str) -> None:
        engine = self._engines.pop(name, None)
        if engine is not None:
            close(engine)

    # --- question 2

    def compare(self, cases: list[Case], time_left: Budget, seed: int) -> VerifyReport:
        """Both plain, on every case."""
        if self.own:
            self._take_noise(cases, time_left, seed)
        kind = self.reference.kind
        self._drop("reference")  # its weights go before the candidate's come
        options = {} if self.right is None else {"limits": time_left.limits()}
        second = self._engine(1, self.right, optimize=False, **options)
        self._engines["candidate"] = second
        proto = self.right.proto if self.right else None
        self.actual = []
        for number, case in enumerate(cases, 1):
            self.says(f"verifying: the result on draw {number}/{len(cases)}")
            self.actual.append(second.run(candidate_feeds(case.feeds, proto)))
        self._drop("candidate")
        if not self.names:
            self.names = _by_position(cases[0].expected, self.actual[0])
            self.judge.pairs = self.names
        outputs = self._judged(cases)
        if self.own and not all(c.passed for c in outputs.values()) and self._move_weights(
            cases, time_left, seed
        ):
            outputs = self._judged(cases)
        notes = [*_doubts(cases, outputs), *self._blindness(outputs, cases, time_left, seed)]
        return VerifyReport(
            passed=False, outputs=outputs, mapping=self.names, rule=self.rule,
            first_difference=None, reference_engine=kind, candidate_engine=second.kind,
            provider="", draws=[case.label for case in cases], notes=notes,
            noise_draws=self.judge.noise.draws,
        )

    def nothing(self) -> VerifyReport:
        """The report where the whole network could not be run in time."""
        return VerifyReport(
            passed=False, outputs={}, mapping=self.names, rule=self.rule, first_difference=None,
            reference_engine="none", candidate_engine="none", provider="", draws=[],
        )

    def _judged(self, cases: list[Case]) -> dict[str, Comparison]:
        outputs: dict[str, Comparison] = {}
        self.failed: list[tuple[Case, list[str]]] = []
        for case, actual in zip(cases, self.actual, strict=True):
            found = self.judge.compared(case.expected, actual)
            joined(outputs, found)
            bad = [name for name, c in found.items() if not c.passed]
            if bad:
                self.failed.append((case, bad))
        return outputs

    def _take_noise(self, cases: list[Case], time_left: Budget, seed: int) -> None:
        rng = np.random.default_rng([seed, 17])
        wanted = max(len(cases), _NOISE_DRAWS)
        for turn in range(wanted):
            case = cases[turn % len(cases)]
            feeds = moved_feeds(case.feeds, rng)
            if feeds is None:
                break
            if turn and not time_left.allows(0.5):
                time_left.leave_out(f"{wanted - turn} of {wanted} draws of the network's noise")
                break
            self.judge.noise.add(case.expected, self.reference.run(feeds), self.judge.stepped)
        if not self.judge.noise.draws:
            self._move_weights(cases, time_left, seed)

    def _move_weights(self, cases: list[Case], time_left: Budget, seed: int) -> bool:
        """Noise of the weights, too: rounding enters at every layer, not at the input alone."""
        assert self.left is not None
        if not time_left.allows(0.7):
            return False
        moved = moved_weights(self.left.embedded(), seed, codes=self.proven)
        if moved is None:
            return False
        try:
            engine = onnx_engine(Loaded(moved), optimize=False, limits=time_left.limits())
            for case in cases[:_NOISE_DRAWS]:
                self.judge.noise.add(case.expected, engine.run(case.feeds), self.judge.stepped)
            close(engine)
        except BnpassError:
            return False
        return True

    def _blindness(
        self, outputs: dict[str, Comparison], cases: list[Case], time_left: Budget, seed: int
    ) -> Iterator[str]:
        for name, found in outputs.items():
            share = found.noise / found.scale if found.scale else 0.0
            if share > BLIND:
                where = self._amplified(name, cases, seed) if time_left.allows(0.5) else ""
                yield (f"the network is badly conditioned: its own noise in output {name!r} is "
                       f"{share:.2g} of its magnitude{where}, so that running it whole cannot see "
                       "an error of 1e-3; the proof of each edit does")  # fmt: skip

    def _amplified(self, name: str, cases: list[Case], seed: int) -> str:
        """Where an output's noise comes to be large: the first value on the way that has it."""
        if self.left is None or worth_it(self.left.proto):
            return ""
        rule = Tolerance(10 * BLIND, 0.0, self.rule.dtype)  # a tenth of it is asked inside
        feeds, rng = cases[0].feeds, np.random.default_rng([seed, 17])
        weights = moved_weights(self.left.embedded(), seed, codes=self.proven)
        for other, there in ((weights, feeds), (self.left, moved_feeds(feeds, rng))):
            if other is None or there is None:
                continue
            other = other if isinstance(other, Loaded) else Loaded(other)
            found = first_difference(
                self.left, other, feeds, there, [name], rule, optimize=False
            )
            if found is not None:
                return f", from {found.kind} {found.node!r} on"
        return ""

    def locate(self, report: VerifyReport, changed: Collection[str]) -> Difference | None:
        """The first tensor that differs."""
        if self.left is None or self.right is None or not self.failed:
            return None
        case, names = self.failed[0]
        feeds = candidate_feeds(case.feeds, self.right.proto)
        found = first_difference(
            self.left, self.right, case.feeds, feeds, names, self._fine(report), changed,
            optimize=False,
        )
        if found is None:
            report.notes.append(
                "no common intermediate value differs: the fault is in values that only one of "
                "the models has"
            )
        return found

    def _fine(self, report: VerifyReport) -> Tolerance:
        """A rule for values inside: what failed in relation to its magnitude."""
        if not self.own:
            return self.rule
        shares = [c.limit / c.scale for c in report.outputs.values() if not c.passed and c.scale]
        return Tolerance(max(shares, default=self.rule.rtol), 0.0, self.rule.dtype)

    # --- question 3

    def deployed(
        self, cases: list[Case], time_left: Budget, report: VerifyReport, options: dict[str, Any]
    ) -> OptimizerReport | None:
        """The candidate as deployed against itself plain; the reference likewise."""
        if self.right is None:
            return None
        on_cpu = options["provider"] == "cpu"
        if report.candidate_engine != "onnxruntime" and on_cpu:
            return None
        if not time_left.allows(0.6):
            time_left.leave_out("onnxruntime's optimizer")
            return None
        few = list(range(min(len(cases), 2 if on_cpu else len(cases))))
        proto = self.right.proto
        feeds = [candidate_feeds(cases[i].feeds, proto) for i in few]
        plain = [self.actual[i] for i in few]
        gap = self._gap(self.right, feeds, plain, time_left, options)
        own = None
        if self.left is not None and report.reference_engine == "onnxruntime" and on_cpu:
            given_feeds = [cases[i].feeds for i in few]
            expected = [cases[i].expected for i in few]
            own = self._gap(self.left, given_feeds, expected, time_left, options)
        try:
            found = optimizer.ask(gap, own, lambda: time_left.allows(1.0))
        except LimitError as error:
            time_left.leave_out(f"onnxruntime's optimizer: {error.message}")
            return None
        report.notes += found.notes
        return found

    def _gap(
        self, loaded: Loaded, feeds: list[Feeds], plain: list[dict[str, Any]], time_left: Budget,
        options: dict[str, Any],
    ) -> optimizer.Gap:
        names = {n: n for n in plain[0]}
        back = {other: name for name, other in self.names.items()}

        def gap(disabled: Sequence[str]) -> tuple[float, str]:
            engine = onnx_engine(
                loaded, optimize=True, disabled=list(disabled), limits=time_left.limits(),
                **options,
            )
            judge = Judge(names, self.rule, self.own, self.judge.stepped, proven=self.proven)
            judge.noise.largest = {
                n: self.judge.noise.largest.get(back.get(n, n), 0.0) for n in names
            }
            judge.noise.steps = {
                n: self.judge.noise.steps.get(back.get(n, n), 0.0) for n in names
            }
            worst: dict[str, Comparison] = {}
            for one, expected in zip(feeds, plain, strict=True):
                joined(worst, judge.compared(expected, engine.run(one)))
            close(engine)
            return excess(worst, tolerance([loaded.proto]))

        return gap


_NOISE_DRAWS = 4


def _load(model: Verifiable) -> Loaded | None:
    return None if is_module(model) else Loaded.load(model)


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


