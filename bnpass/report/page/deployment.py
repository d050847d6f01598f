"""The reports of ``fold`` and ``verify``: what was done, what was proven, how fast it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.report.box import proof_of
from bnpass.report.page.around import Stages, surroundings
from bnpass.report.page.page import Card, Page, Section
from bnpass.report.plans import fold_table, refused_table, spared_table
from bnpass.report.tables import Table, size
from bnpass.report.timings import ratio_table, row_table
from bnpass.report.verdicts import answers, first_difference, verdict, verify_table

if TYPE_CHECKING:
    from bnpass.passes.fold import FoldPlan
    from bnpass.runtime.bench import BenchReport
    from bnpass.runtime.verification import VerifyReport


def fold_page(
    source: Path, plan: FoldPlan, stages: Stages, document: dict[str, Any],
    report: VerifyReport | None, timings: BenchReport | None, commands: list[str],
) -> Page:
    """The report of a fold.

    Args:
        source: the file that was folded.
        plan: what was done.
        stages: the graph before and after.
        document: the command's JSON, with ``before`` and ``after``.
        report: what the verdict found; None: it was not asked.
        timings: both files on onnxruntime; None: not timed.
        commands: to repeat it.
    """
    cards = [*_proof_cards(report), *_change_cards(document), *_time_cards(timings)]
    sites = ((e.node, (*e.nodes, *e.into)) for e in (*plan.folded, *plan.refused))
    sections = [
        Section("Sites", html=surroundings(sites, stages)),
        Section("Folds and refusals",
                [t for t in (fold_table(plan), refused_table(plan), spared_table(plan)) if t.rows]),
        _verdict_section(report),
        _latency_section(timings),
    ]  # fmt: skip
    norms = document["before"]["batch_norms"]
    left = document["after"]["batch_norms"]
    return Page(f"{source.name}, folded", f"{norms - left:,} of {norms:,} BatchNorms are gone",
                cards, sections, commands)  # fmt: skip


def verify_page(
    names: tuple[str, str], stages: Stages, report: VerifyReport, more: list[Table | str],
    timings: BenchReport | None, commands: list[str],
) -> Page:
    """The report of a verification.

    Args:
        names: of the reference and of the candidate.
        stages: both graphs.
        report: what was found.
        more: what else was asked: accuracy and determinism.
        timings: both files on onnxruntime; None: not timed.
        commands: to repeat it.
    """
    cards = [*_proof_cards(report), *_time_cards(timings)]
    sections = [
        _verdict_section(report),
        Section("More that was asked", more),
        Section("Sites", html=surroundings(_differing(stages), stages)),
        _latency_section(timings),
    ]
    subtitle = f"{names[0]} (reference) and {names[1]} (candidate)"
    return Page("Do both compute the same?", subtitle, cards, sections, commands)


def _differing(stages: Stages) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Operators that one of two graphs has alone."""
    (old, _), (new, _) = stages.values()
    yield from ((name, (name,)) for name in old.ops if name not in new.ops)
    yield from ((name, (name,)) for name in new.ops if name not in old.ops)


def _proof_cards(report: VerifyReport | None) -> list[Card]:
    if report is None:
        return [Card("verdict", "not asked", "--no-verify")]
    error, limit = proof_of(report.to_dict())
    cards = [Card("verdict", "PASSED" if report.passed else "FAILED",
                  f"{len(report.draws)} draws, {report.seconds:.1f} s", report.passed)]  # fmt: skip
    if error is not None:
        cards.append(Card("largest error", f"{error:.2g}", f"allowed: {limit:.2g}"))
    if report.edits is not None:
        cards.append(Card("edits proven", f"{report.edits.proven:,}", "in float64, each on its own",
                          report.edits.passed))  # fmt: skip
    return cards


def _change_cards(document: dict[str, Any]) -> list[Card]:
    before, after = document["before"], document["after"]
    pairs = (("BatchNorms left", "batch_norms"), ("nodes", "nodes"), ("parameters", "parameters"))
    cards = [Card(label, f"{after[key]:,}", f"before: {before[key]:,}")
             for label, key in pairs]  # fmt: skip
    return [*cards, Card("size", size(after["bytes"]), f"before: {size(before['bytes'])}")]


def _time_cards(timings: BenchReport | None) -> list[Card]:
    if timings is None or not timings.ratios:
        return []
    found = timings.ratios[0]
    return [Card(f"time, batch {found.batch}", f"{found.ratio:.2f} x",
                 f"of before; 95 %: {found.low:.2f} to {found.high:.2f}")]


def _verdict_section(report: VerifyReport | None) -> Section:
    if report is None:
        return Section("The verdict")
    lines = [*report.notes, *answers(report)]
    if report.first_difference is not None:
        lines.append(first_difference(report))
    tables = [verify_table(report)] if report.outputs else []
    return Section("The verdict", [*lines, *tables, verdict(report)])


def _latency_section(timings: BenchReport | None) -> Section:
    if timings is None:
        return Section("Latency")
    ratios = [ratio_table(timings)] if timings.ratios else []
    return Section("Latency", [row_table(timings), *ratios, *timings.notes])
