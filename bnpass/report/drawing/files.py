"""A picture into a file, in the format that the file's name ends in."""

from __future__ import annotations

from pathlib import Path

from bnpass.errors import UsageError
from bnpass.files import atomic_write
from bnpass.report.drawing.picture import Picture
from bnpass.report.drawing.svg import svg
from bnpass.report.drawing.text import dot, mermaid

FORMATS = (".svg", ".png", ".pdf", ".dot", ".mmd")
"""File name endings that :func:`draw` knows."""


def draw(picture: Picture, path: Path, *, title: str = "", force: bool = True) -> Path:
    """Write a picture in the format that the file's name ends in.

    Args:
        picture: what to draw.
        path: ends in one of :data:`FORMATS`.
        title: of an SVG.
        force: replace an existing file.

    Raises:
        UsageError: another ending.
        MissingDependencyError: a PNG or PDF without matplotlib.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise UsageError(f"cannot draw to {path.name!r}", f"end it in {', '.join(FORMATS)}")
    if ending in (".png", ".pdf"):
        from bnpass.report.drawing.raster import draw_raster

        return draw_raster(picture, path)
    texts = {".svg": lambda: svg(picture, title), ".dot": lambda: dot(picture),
             ".mmd": lambda: mermaid(picture)}  # fmt: skip
    return atomic_write(path, texts[ending](), force=force)
