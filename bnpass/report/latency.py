"""The picture of a benchmark: latency against batch size, and the ratio to the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.errors import UsageError
from bnpass.report.curves import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bnpass.runtime.bench import BenchReport, Ratio, Timing

FORMATS = (".png", ".svg", ".pdf")
"""File name endings that :func:`draw_latency` knows."""


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before anything is timed.

    Raises:
        UsageError: the name has another ending.
        MissingDependencyError: matplotlib is not installed.
    """
    new_figure(1, 1)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"cannot draw to {path.name!r}", f"end it in {', '.join(FORMATS)}")


def draw_latency(report: BenchReport, path: Path) -> Path:
    """Draw a benchmark: medians with their 50% to 90% range; ratios, or throughput of one model.

    Args:
        report: with at least one row.
        path: a ``.png``, ``.svg`` or ``.pdf`` file, written in one step.

    Raises:
        UsageError: another ending.
        MissingDependencyError: matplotlib is not installed.
    """
    check_picture(path)
    figure = new_figure(10.4, 3.8)
    left, right = figure.subplots(1, 2)
    several = len({row.threads for row in report.rows}) > 1
    _latency(left, report.rows, several)
    if report.ratios:
        _ratios(right, report.ratios, several)
    else:
        _throughput(right, report.rows, several)
    batches = sorted({row.batch for row in report.rows})
    for axes in (left, right):
        _scaled(axes, batches)
    figure.suptitle(f"onnxruntime, {report.rows[0].provider}")
    return save_figure(figure, path)


def _grouped(items: Sequence[Any], several: bool) -> dict[str, list[Any]]:
    """Rows or ratios by label, each by batch size."""
    groups: dict[str, list[Any]] = {}
    for item in items:
        threads = f", {item.threads or 'default'} threads" if several else ""
        groups.setdefault(item.model + threads, []).append(item)
    return {label: sorted(group, key=lambda i: i.batch) for label, group in groups.items()}


def _latency(axes: Axes, rows: Sequence[Timing], several: bool) -> None:
    for label, group in _grouped(rows, several).items():
        batches = [row.batch for row in group]
        axes.plot(batches, [row.p50 for row in group], marker=".", label=label)
        axes.fill_between(batches, [r.p50 for r in group], [r.p90 for r in group], alpha=0.2)
    axes.set_yscale("log")
    axes.set_ylabel("latency in ms (median; band up to p90)")


def _ratios(axes: Axes, ratios: Sequence[Ratio], several: bool) -> None:
    for label, group in _grouped(ratios, several).items():
        values = [r.ratio for r in group]
        # The bootstrap's interval need not hold the median itself when there are few runs.
        low = [max(r.ratio - r.low, 0.0) for r in group]
        high = [max(r.high - r.ratio, 0.0) for r in group]
        axes.errorbar([r.batch for r in group], values, yerr=[low, high], marker=".", capsize=3,
                      label=label)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel(f"median over that of {ratios[0].baseline} (95% interval)")


def _throughput(axes: Axes, rows: Sequence[Timing], several: bool) -> None:
    for label, group in _grouped(rows, several).items():
        batches = [row.batch for row in group]
        axes.plot(batches, [row.throughput for row in group], marker=".", label=label)
    axes.set_ylabel("samples a second")


def _scaled(axes: Axes, batches: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.grid(alpha=0.3)
    axes.legend()
