"""The pictures of the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.arms import Outcome
from bnpass.files import replacing
from bnpass.pipeline.summary import curve_of
from bnpass.report.curves import draw_curves


def draw(path: Path, outcomes: Sequence[Outcome], title: str) -> None:
    """Loss and validation accuracy against steps, one line a run."""
    curves = [curve_of(f"{o.label}, lr {o.lr:g}", o.history) for o in outcomes if o.history.rows]
    draw_curves(curves, path, title=title)


def draw_percentiles(path: Path, outcomes: Sequence[Outcome], value: str) -> None:
    """The paper's Figure 1 b and c: a pre-activation's percentiles over training, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(outcomes), squeeze=False)[0]
    for axes, outcome in zip(panels, outcomes, strict=True):
        rows = [r for r in outcome.history.percentiles if r[1] == value]
        steps = [r[0] for r in rows]
        for column, label in ((4, "85th"), (3, "median"), (2, "15th")):
            axes.plot(steps, [r[column] for r in rows], label=label, linewidth=1)
        axes.set(title=outcome.label, xlabel="training step", ylabel=f"input of {value[7:]}")
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
