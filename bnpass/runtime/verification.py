"""What a verification found: the answers to its three questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bnpass.errors import VerificationError
from bnpass.report.shown import Shown
from bnpass.report.tables import Table
from bnpass.report.verdicts import shown_verify
from bnpass.runtime.compare import Comparison
from bnpass.runtime.difference import Difference
from bnpass.runtime.tolerance import Tolerance
from bnpass.verdict.findings import ProofReport
from bnpass.verdict.optimizer import OptimizerReport


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
