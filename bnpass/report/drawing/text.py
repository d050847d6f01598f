"""Pictures as text that other programs draw: Graphviz (DOT) and Mermaid."""

from __future__ import annotations

from bnpass.report.drawing.picture import (
    ACTIVE,
    ADDED,
    CHANGED,
    NORM,
    OTHER,
    PORT,
    REMOVED,
    Box,
    Picture,
)
from bnpass.report.terminal import escaped

FILL = {NORM: "#f4a261", ACTIVE: "#a8dadc", OTHER: "#f1f1f1", PORT: "#ffffff"}
"""Colours of boxes by class."""

STROKE = {"": "#555555", CHANGED: "#1d4ed8", ADDED: "#15803d", REMOVED: "#b91c1c"}
"""Colours of outlines and arrows by what became of them."""


def dot(picture: Picture) -> str:
    """The picture in Graphviz's language."""
    lines = ["digraph network {", "  rankdir=TB; node [shape=box, style=filled, fontsize=10];"]
    lines += [f"  {box.key} [{_dot_look(box)}];" for box in picture.boxes]
    for arrow in picture.arrows:
        looks = [f"label={_quoted(arrow.text)}, fontsize=8"] if arrow.text else []
        looks += [f'color="{STROKE[arrow.state]}"'] if arrow.state else []
        look = f" [{', '.join(looks)}]" if looks else ""
        lines.append(f"  {arrow.start} -> {arrow.end}{look};")
    return "\n".join([*lines, "}", ""])


def _dot_look(box: Box) -> str:
    if box.style == PORT:
        return f"label={_quoted(box.title)}, shape=ellipse"
    words = ["filled", *(["dashed"] if box.dashed else []),
             *(["rounded"] if box.style == ACTIVE else [])]  # fmt: skip
    border = f', color="{STROKE[box.state]}"' if box.state else ""
    return (f'label={_quoted(box.title, box.name)}, fillcolor="{FILL[box.style]}", '
            f'style="{",".join(words)}"{border}')  # fmt: skip


def _quoted(*words: str) -> str:
    safe = (escaped(word).replace("\\", "\\\\").replace('"', '\\"') for word in words)
    return '"' + "\\n".join(safe) + '"'


def mermaid(picture: Picture) -> str:
    """The picture in Mermaid's language, which Markdown viewers draw."""
    lines = ["flowchart TB"]
    for box in picture.boxes:
        lines += _mermaid_box(box)
    lines += [
        f'  {a.start} -->|"{a.text}"| {a.end}' if a.text else f"  {a.start} --> {a.end}"
        for a in picture.arrows
    ]
    lines += [f"  classDef {style} fill:{FILL[style]}" for style in (NORM, ACTIVE, OTHER)]
    return "\n".join([*lines, ""])


def _mermaid_box(box: Box) -> list[str]:
    if box.style == PORT:
        return [f'  {box.key}(("{_mermaid_text(box.title)}"))']
    open_, close = ("([", "])") if box.style == ACTIVE else ("[", "]")
    text = f"{_mermaid_text(box.title)}<br/>{_mermaid_text(box.name)}"
    lines = [f'  {box.key}{open_}"{text}"{close}:::{box.style}']
    dashes = "stroke-dasharray: 4 4" if box.dashed else ""
    looks = [dashes, f"stroke:{STROKE[box.state]}" if box.state else ""]
    return [*lines, *([f"  style {box.key} {','.join(filter(None, looks))}"] if any(looks) else [])]


def _mermaid_text(text: str) -> str:
    return escaped(text).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
