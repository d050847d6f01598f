"""Pictures as PNG or PDF, drawn by matplotlib from the layout that the SVG has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnpass.report.curves import new_figure, save_figure
from bnpass.report.drawing.layout import Point, layered
from bnpass.report.drawing.picture import ACTIVE, PORT, Box, Picture
from bnpass.report.drawing.svg import box_size, shown_name
from bnpass.report.drawing.text import FILL, STROKE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCH = 72.0  # pixels of the layout an inch
_FONT = 7.5  # points


def draw_raster(picture: Picture, path: Path) -> Path:
    """Write the picture as the ``.png`` or ``.pdf`` file that the name says.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    sizes = {box.key: box_size(box) for box in picture.boxes}
    layout = layered(sizes, [(arrow.start, arrow.end) for arrow in picture.arrows])
    figure = new_figure(layout.width / _INCH, layout.height / _INCH, arranged=False)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))
    axes.axis("off")
    for arrow, route in zip(picture.arrows, layout.routes, strict=True):
        _draw_route(axes, route, STROKE[arrow.state])
    for box in picture.boxes:
        _draw_box(axes, box, layout.centres[box.key], sizes[box.key])
    return save_figure(figure, path)


def _draw_route(axes: Axes, route: Sequence[Point], colour: str) -> None:
    xs, ys = zip(*route, strict=True)
    axes.plot(xs, ys, color=colour, linewidth=0.8, zorder=1)
    axes.annotate("", route[-1], (xs[-1], ys[-1] - 6), zorder=1,
                  arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 0.8})


def _draw_box(axes: Axes, box: Box, centre: Point, size: tuple[float, float]) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), (width, height) = centre, size
    round_ = box.style in (ACTIVE, PORT)
    radius = min(width, height) / 2 if round_ else 3.0
    corner = (x - width / 2 + radius, y - height / 2 + radius)
    axes.add_patch(FancyBboxPatch(
        corner, width - 2 * radius, height - 2 * radius, boxstyle=f"round,pad={radius}",
        facecolor=FILL[box.style], edgecolor=STROKE[box.state], zorder=2,
        linewidth=1.8 if box.state or box.dashed else 0.8, linestyle="--" if box.dashed else "-",
    ))  # fmt: skip
    text = "\n".join(shown_name(t) for t in (box.title, box.name) if t)
    axes.text(x, y, text.replace("$", r"\$"), ha="center", va="center", fontsize=_FONT,
              zorder=3, linespacing=1.3, family="monospace")
