"""The report of ``run``: the arms and their curves, and the graph from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bnpass.report.page.around import Stages, surroundings
from bnpass.report.page.chart import Series, chart
from bnpass.report.page.page import Card, Page, Section
from bnpass.report.plans import site_table, skipped_table
from bnpass.report.result import agreement, result_table, search_table
from bnpass.report.tables import Table, is_share, measure
from bnpass.report.timings import ratio_table, row_table

if TYPE_CHECKING:
    from bnpass.passes.sites import InsertPlan
    from bnpass.report.curves import Curve
    from bnpass.report.percentiles import Rows
    from bnpass.runtime.bench import BenchReport


def run_page(
    report: dict[str, Any], plan: InsertPlan, stages: Stages, curves: Sequence[Curve],
    percentiles: Mapping[str, Rows], timings: BenchReport | None, commands: list[str],
) -> Page:
    """The report of a run.

    Args:
        report: what ``report.json`` holds.
        plan: where BatchNorms went in.
        stages: the graph as given, with BatchNorm, and deployed.
        curves: one an arm.
        percentiles: of watched values, by arm.
        timings: the trained and the deployed file on onnxruntime; None: not timed.
        commands: to repeat it.
    """
    sites = ((s.name, (s.name, *s.absorbers, *s.nonlinearities)) for s in plan.sites)
    search = search_table(report)
    sections = [
        Section("Result", [result_table(report), *([search] if search else [])]),
        Section("Curves", html=_charts([*_curves(curves), *_bands(percentiles)])),
        Section("Sites", html=surroundings(sites, stages)),
        Section("Sites and refusals",
                [t for t in (site_table(plan), skipped_table(plan), _left(report)) if t.rows]),
        Section("The verdict", _verdict(report)),
        _latency(timings),
    ]  # fmt: skip
    name = report["model"]["name"]
    return Page(f"{name}: with BatchNorm, trained and folded", _subtitle(report),
                _cards(report, timings), sections, commands)  # fmt: skip


def _subtitle(report: dict[str, Any]) -> str:
    data = report["data"]
    return (f"{data['train']:,} training samples, {data['validation']:,} for validation; tested on "
            f"{data['test']:,} ({data['test_is']})")


def _cards(report: dict[str, Any], timings: BenchReport | None) -> list[Card]:
    metric = report["metric"]
    cards = [_score(metric, report, arm) for arm in report["arms"]]
    if metric:
        cards.append(Card(f"{metric}, deployed", measure(metric, report[metric]["deployed"]),
                          "deploy.onnx on onnxruntime"))  # fmt: skip
    cards.append(Card("BatchNorms left", f"{report['fold']['left']:,}",
                      f"of {report['insert']['inserted']:,} inserted", not report["fold"]["left"]))
    worst = max(report["verify"]["outputs"].values(), key=lambda c: float(c["max_abs"]))
    passed = bool(report["verify"]["passed"])
    cards.append(Card("verdict", "PASSED" if passed else "FAILED",
                      f"largest error {float(worst['max_abs']):.2g}, "
                      f"{float(worst['limit']):.2g} allowed", passed))  # fmt: skip
    if timings is not None and timings.ratios:
        cards.append(Card("time, deployed", f"{timings.ratios[0].ratio:.2f} x",
                          "of the network with BatchNorm"))  # fmt: skip
    return cards


def _score(metric: str | None, report: dict[str, Any], arm: dict[str, Any]) -> Card:
    note = f"learning rate {arm['lr']:g}"
    if metric:
        return Card(f"{metric} {arm['name']}", measure(metric, report[metric][arm["name"]]), note)
    return Card(f"loss {arm['name']}", f"{float(report['loss'][arm['name']]):.4g}", note)


def _charts(drawn: Sequence[str]) -> str:
    found = [one for one in drawn if one]
    return f'<div class="charts">{"".join(found)}</div>' if found else ""


def _curves(curves: Sequence[Curve]) -> list[str]:
    if not curves:
        return []
    metric = curves[0].metric
    factor, unit = (100, " (%)") if is_share(metric) else (1, "")
    losses = [Series(c.label, c.loss) for c in curves]
    scores = [Series(c.label, [(x, factor * y) for x, y in c.accuracy]) for c in curves]
    return [chart("training loss", losses, "training step", "loss"),
            chart(f"validation {metric}", scores, "training step", f"{metric}{unit}")]


def _bands(percentiles: Mapping[str, Rows]) -> list[str]:
    """The paper's Figure 1: median, 15th and 85th percentile of every watched value."""
    values = dict.fromkeys(row[1] for rows in percentiles.values() for row in rows)
    return [
        chart(f"{value}: median, 15th to 85th percentile",
              [_band(arm, rows, value) for arm, rows in percentiles.items()],
              "training step", "value")
        for value in values
    ]  # fmt: skip


def _band(arm: str, rows: Rows, value: str) -> Series:
    found = [row for row in rows if row[1] == value]
    return Series(arm, [(step, middle) for step, _, _, middle, _ in found],
                  [(step, low) for step, _, low, _, _ in found],
                  [(step, high) for step, _, _, _, high in found])


def _left(report: dict[str, Any]) -> Table:
    table = Table("not folded", ["node", "reason"])
    for entry in report["fold"]["folds"]:
        if entry["how"] in ("", "merged"):
            table.add(entry["node"], entry["reason"])
    return table


def _verdict(report: dict[str, Any]) -> list[Table | str]:
    found = report["verify"]
    table = Table("trained against deployed, on the test data",
                  ["output", "max abs", "max rel", "allowed", "verdict"],
                  right=frozenset({1, 2, 3}))
    for name, c in found["outputs"].items():
        table.add(name, float(c["max_abs"]), float(c["max_rel"]), float(c["limit"]),
                  "passed" if c["passed"] else "FAILED")
    checks = report["determinism"]["checks"]
    return [
        table, *found["notes"],
        f"two runs agree: {agreement(checks, ('the same input', 'a fresh process'))}",
        f"batch compositions agree: {agreement(checks, ('another batch', 'batches of'))}",
    ]  # fmt: skip


def _latency(timings: BenchReport | None) -> Section:
    if timings is None:
        return Section("Latency")
    ratios = [ratio_table(timings)] if timings.ratios else []
    return Section("Latency", [row_table(timings), *ratios, *timings.notes])
