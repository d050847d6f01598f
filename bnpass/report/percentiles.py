"""The paper's Figure 1 b and c: how the distribution of a pre-activation moves over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bnpass.report.curves import add_legend, new_figure, save_figure

Rows = Sequence[tuple[int, str, float, float, float]]
"""Rows ``(step, value, p15, p50, p85)``."""


def draw_percentiles(arms: Mapping[str, Rows], path: Path) -> Path:
    """Draw the {15, 50, 85}th percentiles against steps: a column an arm, a row a watched value.

    Args:
        arms: what was recorded, by the arm's name; all with the same values.
        path: the file, written in one step.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    values = list(dict.fromkeys(row[1] for rows in arms.values() for row in rows))
    figure = new_figure(4.6 * len(arms), 3.2 * len(values))
    panels = figure.subplots(len(values), len(arms), squeeze=False, sharey="row")
    for value, line in zip(values, panels, strict=True):
        for (name, rows), axes in zip(arms.items(), line, strict=True):
            found = [row for row in rows if row[1] == value]
            steps = [row[0] for row in found]
            for column, label in ((4, "85th"), (3, "median"), (2, "15th")):
                axes.plot(steps, [row[column] for row in found], label=label, linewidth=1)
            axes.set(title=name, xlabel="training step", ylabel=value)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
    add_legend(figure)
    return save_figure(figure, path)
