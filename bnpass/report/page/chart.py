"""Line charts as inline SVG, in the page's own colours; the legend stands below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bnpass.report.page.page import text

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 520.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 14.0, 12.0, 44.0
_KEPT = 400  # points of a line; more cannot be seen
_COLOURS = 4


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: in the legend.
        points: (x, y), sorted by x; what is no finite number is left out.
        low, high: (x, y) of the band around it; may be empty.
    """

    label: str
    points: Points
    low: Points = field(default=())
    high: Points = field(default=())


def chart(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """A chart as HTML; empty where there is nothing to draw."""
    lines = [Series(s.label, *(_thinned(part) for part in (s.points, s.low, s.high)))
             for s in series]  # fmt: skip
    every = [p for s in lines for part in (s.points, s.low, s.high) for p in part]
    if not every:
        return ""
    x_ticks = ticks(min(x for x, _ in every), max(x for x, _ in every), whole=True)
    y_ticks = ticks(min(y for _, y in every), max(y for _, y in every))
    x, y = _scale(x_ticks, _LEFT, _WIDTH - _RIGHT), _scale(y_ticks, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_axes(x_ticks, y_ticks, x, y, x_label, y_label)]
    for index, line in enumerate(lines):
        parts += _drawn(line, f"var(--c{index % _COLOURS})", x, y)
    said = "; ".join(f"{s.label}: {s.points[-1][1]:.4g} at {s.points[-1][0]:g}"
                     for s in lines if s.points)  # fmt: skip
    return (
        f'<figure class="chart"><figcaption>{text(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{text(f"{title}. Last: {said}")}">{"".join(parts)}</svg>'
        f"{_legend(lines)}</figure>"
    )


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers that cover a range, about five of them.

    Args:
        low, high: the range; equal ends are widened.
        whole: whole numbers only.
    """
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _thinned(points: Points) -> list[tuple[float, float]]:
    good = [(float(x), float(y)) for x, y in points if math.isfinite(float(y))]
    stride = -(-len(good) // _KEPT)
    kept = good[:: stride or 1]
    return kept if not good or kept[-1] == good[-1] else [*kept, good[-1]]


def _scale(ends: Sequence[float], start: float, stop: float) -> Callable[[float], float]:
    low, span = ends[0], ends[-1] - ends[0]
    return lambda value: start + (value - low) / span * (stop - start)


def _axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], x: Callable[[float], float],
    y: Callable[[float], float], x_label: str, y_label: str,
) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [
        f'<path class="grid" d="M{_LEFT:.0f} {y(v):.1f}H{right:.0f}"/>'
        f'<text x="{_LEFT - 6:.0f}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.4g}</text>'
        for v in y_ticks
    ]
    parts += [f'<text x="{x(v):.1f}" y="{bottom + 18:.0f}" text-anchor="middle">{v:,.0f}</text>'
              for v in x_ticks]  # fmt: skip
    middle = (_TOP + bottom) / 2
    parts.append(f'<text x="{(_LEFT + right) / 2:.0f}" y="{_HEIGHT - 6:.0f}" '
                 f'text-anchor="middle">{text(x_label)}</text>')  # fmt: skip
    parts.append(f'<text transform="translate(14 {middle:.0f}) rotate(-90)" '
                 f'text-anchor="middle">{text(y_label)}</text>')  # fmt: skip
    return parts


def _drawn(
    line: Series, colour: str, x: Callable[[float], float], y: Callable[[float], float]
) -> list[str]:
    parts = []
    if line.low and line.high:
        around = [*line.low, *reversed(line.high)]
        corners = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in around)
        parts.append(f'<polygon class="band" points="{corners}" style="fill:{colour}"/>')
    if line.points:
        parts.append(f'<path class="line" d="{_path(line.points, x, y)}" style="stroke:{colour}"/>')
    return parts


def _path(points: Points, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """A polyline; a single point becomes a short stroke, so that it is seen."""
    if len(points) == 1:
        return f"M{x(points[0][0]) - 3:.1f} {y(points[0][1]):.1f}h6"
    start = points[0]
    rest = (f"L{x(b[0]):.1f} {y(b[1]):.1f}" for _, b in pairwise(points))
    return f"M{x(start[0]):.1f} {y(start[1]):.1f}{''.join(rest)}"


def _legend(lines: Sequence[Series]) -> str:
    entries = "".join(
        f'<li><span style="background:var(--c{i % _COLOURS})"></span>{text(line.label)}</li>'
        for i, line in enumerate(lines)
    )
    return f'<ul class="legend">{entries}</ul>'
