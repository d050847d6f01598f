"""Pictures as SVG: one file that any browser shows, light or dark, with a tooltip on every box."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from bnpass.report.drawing.layout import Layout, Point, layered
from bnpass.report.drawing.picture import ACTIVE, PORT, Arrow, Box, Picture
from bnpass.report.drawing.text import FILL, STROKE
from bnpass.report.terminal import escaped

_CHAR, _LINE, MARGIN = 6.7, 15.0, 10.0  # pixels: a character of 11 px, a line, inside a box
_SMALL_CHAR, _BESIDE = 5.5, 5.0  # a character of 9 px, from an arrow to its shape
_LONGEST = 34  # characters of a name

STYLE = """
.net text{font:11px ui-monospace,Menlo,Consolas,monospace;fill:#1f2328;text-anchor:middle}
.net .kind{font-weight:600}
.net .shape{font-size:9px;fill:#6b7280;text-anchor:start;stroke:#fff;stroke-width:3;
paint-order:stroke}
.net .box rect{stroke-width:1.2}
.net .arrow{fill:none;stroke-width:1.2}
.net .dashed rect{stroke-dasharray:5 3;stroke-width:2}
.net .removed{opacity:.55}
.net .removed text{text-decoration:line-through}
.net .arrow.removed{stroke-dasharray:4 3}
.net .changed rect,.net .added rect{stroke-width:2.6}
@media (prefers-color-scheme:dark){.net .shape{fill:#9ca3af;stroke:#111}
.net .arrow.kept{stroke:#9ca3af}}
"""


def svg(picture: Picture, title: str = "", *, inline: bool = False) -> str:
    """The picture as an SVG document.

    Args:
        picture: what to draw.
        title: for screen readers and browser tabs.
        inline: the page around has :data:`STYLE` and :func:`arrow_heads`.
    """
    sizes = {box.key: box_size(box) for box in picture.boxes}
    layout = layered(sizes, [(arrow.start, arrow.end) for arrow in picture.arrows])
    width, height = round(_width(picture.arrows, layout)), round(layout.height)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="net" {size} role="img">',
        f"<title>{_text(title)}</title>" if title else "",
        *(() if inline else (f"<style>{STYLE}</style>", arrow_heads())),
        *map(_arrow, picture.arrows, layout.routes),
        *_shapes(picture.arrows, layout.routes),
        *(_box(box, layout, sizes[box.key]) for box in picture.boxes),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def shown_name(name: str) -> str:
    """A name as it stands in a box: its middle left out where it is long."""
    safe = escaped(name)
    keep = _LONGEST // 2 - 1
    return safe if len(safe) <= _LONGEST else f"{safe[:keep]}…{safe[-keep:]}"


def box_size(box: Box) -> tuple[float, float]:
    """Width and height in pixels."""
    lines = [shown_name(box.title), *([shown_name(box.name)] if box.name else [])]
    return max(map(len, lines)) * _CHAR + 2 * MARGIN, len(lines) * _LINE + MARGIN


def _text(text: str) -> str:
    return escape(escaped(text))


def arrow_heads() -> str:
    """The definitions that arrows refer to."""
    heads = "".join(
        f'<marker id="head{state}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for state, colour in STROKE.items()
    )
    return f"<defs>{heads}</defs>"


def _arrow(arrow: Arrow, route: Sequence[Point]) -> str:
    return (f'<path class="arrow {arrow.state or "kept"}" d="{_curve(route)}" '
            f'stroke="{STROKE[arrow.state]}" marker-end="url(#head{arrow.state})"/>')  # fmt: skip


def _width(arrows: Sequence[Arrow], layout: Layout) -> float:
    """Of the whole, with the shapes that stand beside arrows."""
    ends = (route[0][0] + _BESIDE + _SMALL_CHAR * len(arrow.text) + MARGIN
            for arrow, route in zip(arrows, layout.routes, strict=True))  # fmt: skip
    return max(layout.width, *ends) if arrows else layout.width


def _shapes(arrows: Sequence[Arrow], routes: Sequence[Sequence[Point]]) -> list[str]:
    """Shapes beside the starts of arrows; once where several arrows carry one value."""
    places = {(a.text, *r[0]): None for a, r in zip(arrows, routes, strict=True) if a.text}
    return [
        f'<text class="shape" x="{x + _BESIDE:.0f}" y="{y + 12:.0f}">{_text(text)}</text>'
        for text, x, y in places
    ]


def _curve(route: Sequence[Point]) -> str:
    """Smooth from point to point: it leaves and arrives straight down."""
    parts = [f"M{route[0][0]:.0f} {route[0][1]:.0f}"]
    for (x, y), (to_x, to_y) in pairwise(route):
        middle = (y + to_y) / 2
        parts.append(f"C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}")
    return "".join(parts)


def _box(box: Box, layout: Layout, size: tuple[float, float]) -> str:
    (x, y), (width, height) = layout.centres[box.key], size
    radius = height / 2 if box.style in (ACTIVE, PORT) else 4
    words = ["box", box.style, box.state, "dashed" if box.dashed else ""]
    hint = "\n".join(filter(None, (box.title, box.name, *box.hint)))
    baseline = y - height / 2 + MARGIN / 2 + 11
    lines = [f'<text class="kind" x="{x:.0f}" y="{baseline:.0f}">{_shown(box.title)}</text>']
    if box.name:
        lines.append(f'<text x="{x:.0f}" y="{baseline + _LINE:.0f}">{_shown(box.name)}</text>')
    return (
        f'<g class="{" ".join(filter(None, words))}" tabindex="0"><title>{_hint(hint)}</title>'
        f'<rect x="{x - width / 2:.0f}" y="{y - height / 2:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" rx="{radius:.0f}" fill="{FILL[box.style]}" '
        f'stroke="{STROKE[box.state]}"/>{"".join(lines)}</g>'
    )


def _shown(name: str) -> str:
    return escape(shown_name(name))


def _hint(text: str) -> str:
    return escape(escaped(text, keep="\n"))
