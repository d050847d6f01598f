"""The picture of a training: loss and metric against steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bnpass.errors import MissingDependencyError
from bnpass.files import replacing
from bnpass.report.tables import is_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bnpass.training.lr_range import LrRange


@dataclass(frozen=True)
class Curve:
    """One arm of an experiment.

    Attributes:
        label: shown in the legend.
        loss: (step, training loss) pairs.
        accuracy: (step, metric) pairs on held-out data; may be empty.
        metric: its name.
    """

    label: str
    loss: Sequence[tuple[int, float]]
    accuracy: Sequence[tuple[int, float]] = field(default=())
    metric: str = "accuracy"


def draw_curves(curves: Sequence[Curve], path: Path, *, title: str = "") -> Path:
    """Draw loss (and the metric, where there is one) against steps, one line an arm.

    Args:
        curves: the arms.
        path: a ``.png``, ``.svg`` or ``.pdf`` file, written in one step.
        title: stands above.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure = new_figure(5.2 * (1 + any(curve.accuracy for curve in curves)), 3.8)
    panels = ["loss", "accuracy"] if any(curve.accuracy for curve in curves) else ["loss"]
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for curve in curves:
            points = curve.loss if panel == "loss" else _in_unit(curve)
            if points:
                axes.plot(*zip(*points, strict=True), label=curve.label, **_style(panel))
        axes.set_xlabel("training step")
        axes.set_ylabel("training loss" if panel == "loss" else _label(curves[0].metric))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    add_legend(figure)
    figure.suptitle(title)
    return save_figure(figure, path)


def _in_unit(curve: Curve) -> list[tuple[int, float]]:
    factor = 100 if is_share(curve.metric) else 1
    return [(step, factor * value) for step, value in curve.accuracy]


def _label(metric: str) -> str:
    return f"validation {metric}" + (" (%)" if is_share(metric) else "")


def draw_range(found: LrRange, path: Path) -> Path:
    """Draw a learning-rate range test: the loss of each step against its rate, and the choice.

    Args:
        found: the test.
        path: the file, written in one step.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure = new_figure(5.2, 3.8)
    axes = figure.subplots()
    axes.semilogx(found.lrs, found.losses, alpha=0.3, label="a step")
    axes.semilogx(found.lrs, found.smoothed, label="moving average")
    axes.axvline(found.suggestion, linestyle="--", color="black",
                 label=f"chosen: {found.suggestion:.3g}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    add_legend(figure)
    return save_figure(figure, path)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def new_figure(width: float, height: float, *, arranged: bool = True) -> Figure:
    """An empty figure, drawn without a display.

    Args:
        width: in inches.
        height: in inches.
        arranged: leave the places of axes to matplotlib.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("pictures need matplotlib",
                                     "pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained" if arranged else None)
    FigureCanvasAgg(figure)
    return figure


def add_legend(figure: Figure) -> None:
    """One legend below all panels, where it hides nothing."""
    entries = {text: handle for axes in figure.axes
               for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center",
                      ncols=min(len(entries), 3), frameon=False)  # fmt: skip


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in one step, in the format that the file's name ends in."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)
    return path


def _style(panel: str) -> Mapping[str, object]:
    return {"linewidth": 1} if panel == "loss" else {"marker": ".", "linewidth": 1.2}


def smooth(points: Sequence[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """The mean over the last ``window`` values at every point (fewer at the start)."""
    result = []
    total = 0.0
    for index, (step, value) in enumerate(points):
        total += value - (points[index - window][1] if index >= window else 0.0)
        result.append((step, total / min(index + 1, window)))
    return result
