"""Latencies as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnpass.report.tables import Table

if TYPE_CHECKING:
    from bnpass.runtime.bench import BenchReport


def row_table(report: BenchReport) -> Table:
    """Latency in milliseconds a run, and samples a second."""
    columns = ["model", "batch", "threads", "p50 ms", "p90 ms", "p99 ms", "samples/s"]
    table = Table("latency", columns, right=frozenset(range(1, 7)))
    for row in report.rows:
        table.add(row.model, row.batch, row.threads or "default", row.p50, row.p90, row.p99,
                  f"{row.throughput:.0f}")
    return table


def ratio_table(report: BenchReport) -> Table:
    """Median latency over the baseline's, with its 95% interval."""
    table = Table("median latency against the baseline; below 1 is faster",
                  ["model", "baseline", "batch", "ratio", "95% interval"], right=frozenset({2, 3}))
    for ratio in report.ratios:
        table.add(ratio.model, ratio.baseline, ratio.batch, f"{ratio.ratio:.3f}",
                  f"{ratio.low:.3f} to {ratio.high:.3f}")
    return table


def shown_bench(report: BenchReport) -> list[Table | str]:
    """A benchmark, as tables and lines."""
    tables = [row_table(report), *([ratio_table(report)] if report.ratios else [])]
    return [*tables, *report.notes, f"timed in {report.seconds:.1f} s"]
