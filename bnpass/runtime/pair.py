"""The two models of a verification, run side by side and compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from bnpass.errors import BnpassError, InputError
from bnpass.onnx_model.signature import Port
from bnpass.runtime.cases import Case
from bnpass.runtime.child import LimitError
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
from bnpass.runtime.inputs import Feeds
from bnpass.runtime.mapping import candidate_feeds, pair_outputs
from bnpass.runtime.parts import worth_it
from bnpass.runtime.tolerance import Tolerance, tolerance
from bnpass.runtime.verification import VerifyReport
from bnpass.verdict import optimizer
from bnpass.verdict.budget import Budget
from bnpass.verdict.noise import moved_feeds, moved_weights, stepped_outputs
from bnpass.verdict.optimizer import OptimizerReport
from bnpass.verdict.whole import BLIND, Judge, excess, joined

Verifiable = str | os.PathLike[str] | onnx.ModelProto | Any
"""A model file, a ModelProto or a torch module."""

_NOISE_DRAWS = 4


class ModelPair:
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


def _load(model: Verifiable) -> Loaded | None:
    return None if is_module(model) else Loaded.load(model)


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
