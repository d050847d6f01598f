"""What verifications found, as tables and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnpass.report.tables import Table
from bnpass.verdict.scale import FACTOR

if TYPE_CHECKING:
    from bnpass.runtime.accuracy import AccuracyReport
    from bnpass.runtime.determinism import DeterminismReport
    from bnpass.runtime.verification import VerifyReport

_SHOWN = 10  # layers of the accuracy table


def answers(report: VerifyReport) -> list[str]:
    """A line for each question that was asked, and one for each that was left out."""
    lines = []
    edits = report.edits
    if edits is not None:
        opened = f", {len(edits.open)} could not be evaluated" if edits.open else ""
        how = "right" if edits.passed else f"WRONG at {edits.failures[0].node!r}"
        lines.append(f"every edit: {how} ({edits.proven} regions in float64, the worst at "
                     f"{edits.worst:.2g} of what rounding allows{opened}; {edits.seconds:.1f} s)")
    if report.outputs:
        lines.append(_whole(report))
    found = report.optimizer
    if found is not None:
        kept = "kept" if not found.cause else f"changed by {found.optimizer or 'several'}"
        lines.append(f"onnxruntime's optimizer: {kept} (difference {found.difference:.2g} of what "
                     f"is allowed{', ' + found.cause if found.cause else ''})")
    return [*lines, *(f"left out: {what}" for what in report.left_out)]


def _whole(report: VerifyReport) -> str:
    worst = max(report.outputs.values(), key=lambda c: (not c.passed, c.ratio or 0.0, c.max_rel))
    word = "verified" if report.same else "differs"
    if worst.steps:
        how = f"{worst.steps} of {worst.compared} entries are another step"
    elif report.noise_draws:
        of = "above" if worst.ratio is None else f"at most {worst.ratio:.2g} times"
        how = (f"max error {worst.max_abs:.2g} absolute, {of} the network's own noise (up to "
               f"{worst.noise:.2g})")
    else:
        how = f"max error {worst.max_abs:.2g} absolute, {worst.max_rel:.2g} relative"
    return (f"{word} on {len(report.draws)} draws in {report.seconds:.1f} s: {how} "
            f"(reference: {report.reference_engine}, optimizations off)")


def verify_table(report: VerifyReport) -> Table:
    """The worst comparison of every output."""
    columns = ["output", "max abs", "max rel", "of its noise", "cosine", "ULPs", "top-1",
               "would pass at rtol", "verdict"]
    table = Table(f"{report.reference_engine} (reference) against {report.candidate_engine} on "
                  "cpu, both plain", columns, right=frozenset(range(1, 8)))
    for name, found in report.outputs.items():
        table.add(name, found.max_abs, found.max_rel, found.ratio, found.cosine, found.ulps,
                  found.top1, found.tolerance, "passed" if found.passed else "FAILED")
    return table


def accuracy_tables(report: AccuracyReport) -> list[Table]:
    """Errors against float64 by output, and the conditioning of the layers, worst first."""
    errors = Table("max |a-b| / max |a| against the reference in float64",
                   ["output", "reference", "candidate", "candidate's weights alone"],
                   right=frozenset({1, 2, 3}))
    for name, found in report.outputs.items():
        errors.add(name, found.reference, found.candidate, found.rewrite)
    layers = Table("conditioning: rounding is amplified by |mean| / sigma",
                   ["layer", "value", "worst |mean|/sigma", "expected relative error"],
                   right=frozenset({2, 3}))
    for layer in report.conditioning[:_SHOWN]:
        layers.add(layer.node, layer.value, layer.ratio, layer.expected)
    if len(report.conditioning) > _SHOWN:
        layers.note = f"{len(report.conditioning) - _SHOWN} better ones: see --json"
    return [errors, layers]


def determinism_table(report: DeterminismReport, model: str = "") -> Table:
    """One row a check."""
    of = f" of {model}" if model else ""
    table = Table(f"determinism{of} on {report.provider} ({report.seconds:.1f} s)",
                  ["compared", "same bits", "max abs", "max rel", "why not checked"],
                  right=frozenset({2, 3}))
    for found in report.checks:
        table.add(found.name, found.equal, found.max_abs, found.max_rel, found.reason)
    return table


def first_difference(report: VerifyReport) -> str:
    """The line on the first tensor that differs."""
    first = report.first_difference
    assert first is not None
    return (f"first difference: {first.value!r} of {first.kind} {first.node!r}, max relative error "
            f"{first.max_rel:.2g}")


def verdict(report: VerifyReport) -> str:
    """The last line: PASSED or FAILED, the rule, the smallest tolerance that passes, the cost."""
    rule = f"|a-b| <= {report.rule.atol:g} + {report.rule.rtol:g} max|a|"
    if report.noise_draws:
        rule = f"|a-b| <= {FACTOR:g} times the network's own noise, of {report.noise_draws} draws"
    least = max((found.tolerance for found in report.outputs.values()), default=0.0)
    word = "PASSED" if report.passed else "FAILED"
    return f"{word} ({rule}; would pass at rtol {least:.2g}; {report.seconds:.1f} s)"


def nearer(report: AccuracyReport) -> str:
    """Which of two models is nearer to float64."""
    who = {"equal": "both are equally near"}.get(report.nearer, f"the {report.nearer} is nearer")
    return f"accuracy: {who} to float64 ({report.seconds:.1f} s)"


def shown_verify(report: VerifyReport) -> list[Table | str]:
    """A verification, as tables and lines."""
    tables = [verify_table(report)] if report.outputs else []
    differs = [first_difference(report)] if report.first_difference is not None else []
    return [*tables, *report.notes, *answers(report), *differs, verdict(report)]


def shown_accuracy(report: AccuracyReport) -> list[Table | str]:
    """A comparison with float64, as tables and a line."""
    return [*accuracy_tables(report), nearer(report)]


def shown_determinism(report: DeterminismReport) -> list[Table | str]:
    """Checks of equal bits, as a table and lines."""
    tables = [determinism_table(report)] if report.checks else []
    word = "PASSED" if report.passed else "FAILED"
    return [*tables, *(f"not deterministic: {reason}" for reason in report.reasons),
            f"{word}: {len(report.checks)} checks of equal bits"]
