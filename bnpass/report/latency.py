"""The picture of a benchmark: latency against batch size, and the ratio to the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.errors import UsageError
from bnpass.report.curves import add_legend, new_figure, save_figure

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
    """Draw a benchmark as bars: medians up to the 90th percentile; ratios, or throughput.

    Args:
        report: with at least one row.
        path: a ``.png``, ``.svg`` or ``.pdf`` file, written in one step.

    Raises:
        UsageError: another ending.
        MissingDependencyError: matplotlib is not installed.
    """
    check_picture(path)
    figure = new_figure(10.4, 4.2)
    left, right = figure.subplots(1, 2)
    several = len({row.threads for row in report.rows}) > 1
    _latency(left, report.rows, several)
    if report.ratios:
        _ratios(right, report.ratios, several)
    else:
        _throughput(right, report.rows, several)
    add_legend(figure)
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
    _bars(axes, _grouped(rows, several), lambda r: r.p50, lambda r: (0.0, r.p90 - r.p50))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("latency (ms): median, whisker to p90")


def _ratios(axes: Axes, ratios: Sequence[Ratio], several: bool) -> None:
    # The bootstrap's interval need not hold the median itself when there are few runs.
    _bars(axes, _grouped(ratios, several), lambda r: r.ratio,
          lambda r: (max(r.ratio - r.low, 0.0), max(r.high - r.ratio, 0.0)), first=1)
    highest = max(1.0, *(ratio.ratio for ratio in ratios))
    axes.set_ylim(0, min(axes.get_ylim()[1], 2 * highest))  # a wild whisker hides no bar
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel(f"median over that of {ratios[0].baseline} (95 % interval)")


def _throughput(axes: Axes, rows: Sequence[Timing], several: bool) -> None:
    _bars(axes, _grouped(rows, several), lambda r: r.throughput, lambda _: (0.0, 0.0))
    axes.set_ylabel("samples a second")


def _bars(
    axes: Axes, groups: dict[str, list[Any]], height: Callable[[Any], float],
    whisker: Callable[[Any], tuple[float, float]], *, first: int = 0,
) -> None:
    """A group of bars for every batch size, a bar a label; colours start at number ``first``."""
    batches = sorted({item.batch for group in groups.values() for item in group})
    width = 0.8 / len(groups)
    for number, (label, group) in enumerate(groups.items()):
        places = [batches.index(item.batch) + (number + 0.5) * width - 0.4 for item in group]
        low, high = zip(*map(whisker, group), strict=True)
        axes.bar(places, [height(item) for item in group], 0.9 * width, label=label,
                 color=f"C{first + number}", yerr=(low, high), capsize=3)  # fmt: skip
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_xlabel("batch size")
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
