"""The graph around every site, before and after; sites that look alike are shown once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bnpass.ir.graph import Graph, Op
from bnpass.report.drawing.picture import ADDED, Marks, Picture, picture, state_of
from bnpass.report.drawing.svg import svg
from bnpass.report.page.page import text
from bnpass.report.words import many

SHOWN = 24
"""Kinds of surroundings that are drawn; the others are only listed."""

_NEIGHBOURS = 8  # of a site that are drawn: a Concat may have hundreds
_MEASURED = 1 << 20  # entries of a constant from which on it is not summed up
_LISTED = 12  # names that are written out

_LEGEND = (
    '<p class="soft">Orange is a BatchNorm, dashed what a fold takes away; round are '
    "nonlinearities. "
    "A blue outline has other weights than before, a green one is new. Point at a box, or go there "
    "with Tab, for shapes and statistics; + and - zoom.</p>"
)

Stages = Mapping[str, tuple[Graph, Marks]]
"""The network from step to step: label -> (graph, what is told apart in it)."""


@dataclass
class _Alike:
    """Sites with the same surroundings."""

    names: list[str] = field(default_factory=list)
    shown: dict[str, set[str]] = field(default_factory=dict)


def surroundings(sites: Iterable[tuple[str, Iterable[str]]], stages: Stages) -> str:
    """HTML with one row of drawings for every kind of surroundings.

    Args:
        sites: the name of each site, and the operators that belong to it in any of the stages.
        stages: the graphs that are drawn beside each other, in order.
    """
    groups: dict[tuple[object, ...], _Alike] = {}
    for name, operators in sites:
        found = {label: _near(graph, operators) for label, (graph, _) in stages.items()}
        if not any(found.values()):  # inside of a nested graph
            continue
        key = tuple(_look(stages[label][0], names) for label, names in found.items())
        group = groups.setdefault(key, _Alike(shown=found))
        group.names.append(name)
    rows = [_row(group, stages) for group in list(groups.values())[:SHOWN]]
    left = list(groups.values())[SHOWN:]
    if left:
        rows.append(f"<p>{many(len(left), 'other kind')} of surroundings, of "
                    f"{many(sum(len(g.names) for g in left), 'site')}, are not drawn.</p>")
    return "\n".join([_LEGEND, *rows]) if rows else ""


def _near(graph: Graph, operators: Iterable[str]) -> set[str]:
    """The operators of a site that a graph has, and some that they read or are read by."""
    own = {name for name in operators if name in graph.ops}
    near = [n for name in sorted(own) for n in (*graph.nx.predecessors(name),
                                                *graph.nx.successors(name))]  # fmt: skip
    return own | set([n for n in dict.fromkeys(near) if n not in own][:_NEIGHBOURS])


def _look(graph: Graph, names: set[str]) -> tuple[object, ...]:
    """Kinds and connections: equal for surroundings that are drawn alike."""
    kinds = sorted((graph.ops[name].kind, len(graph.ops[name].inputs)) for name in names)
    links = sorted((graph.ops[a].kind, graph.ops[b].kind)
                   for a in names for b in graph.nx.successors(a) if b in names)  # fmt: skip
    return tuple(kinds), tuple(links)


def _row(group: _Alike, stages: Stages) -> str:
    first, *others = group.names
    more = f" and {len(others):,} more like it" if others else ""
    drawings = []
    before: Graph | None = None
    for label, (graph, marks) in stages.items():
        drawn = picture(graph, marks, only=group.shown[label])
        drawings.append(figure(_told_apart(drawn, before, graph), label))
        before = graph
    names = ", ".join(others[:_LISTED]) + (" ..." if len(others) > _LISTED else "")
    listed = f'<p class="soft">{text(names)}</p>' if others else ""
    return (f"<h3>{text(first)}{more}</h3>{listed}\n"
            f'<div class="pair">{"".join(drawings)}</div>')  # fmt: skip


def _told_apart(drawn: Picture, before: Graph | None, graph: Graph) -> Picture:
    """Boxes that are new or have other weights than before, with statistics in their hints."""
    boxes = []
    for box in drawn.boxes:
        op = graph.ops[box.name]
        state = box.state
        if before is not None:
            known = box.name in before.ops and before.ops[box.name].kind == op.kind
            state = state_of(box, before, graph) if known else ADDED
        boxes.append(replace(box, state=state, hint=(*box.hint, *_statistics(graph, op))))
    return replace(drawn, boxes=boxes)


def _statistics(graph: Graph, op: Op) -> Sequence[str]:
    """A line for every constant with numbers: mean, standard deviation, range."""
    lines = []
    for name in op.inputs:
        constant = graph.constant(name)
        if constant is None or not 1 < int(np.prod(constant.shape)) <= _MEASURED:
            continue
        numbers = constant.load()
        if numbers.dtype.kind == "f" and np.isfinite(numbers).all():
            wide = numbers.astype(np.float64)
            lines.append(f"{name}: mean {wide.mean():.3g}, sd {wide.std():.3g}, "
                         f"{wide.min():.3g} to {wide.max():.3g}")
    return lines


_BUTTONS = (("0.8", "-", "smaller"), ("0", "1:1", "as it was"), ("1.25", "+", "larger"))


def figure(drawn: Picture, label: str) -> str:
    """A drawing with a caption and buttons that zoom it."""
    buttons = "".join(f'<button type="button" value="{value}" aria-label="{name}">{sign}</button>'
                      for value, sign, name in _BUTTONS)  # fmt: skip
    inside = svg(drawn, label, inline=True) if drawn.boxes else "<p>nothing is left of it</p>"
    if not drawn.boxes:
        return f"<figure><figcaption>{text(label)}</figcaption>{inside}</figure>"
    return (f'<figure class="graph"><figcaption>{text(label)}<span>{buttons}</span></figcaption>'
            f'<div class="view" tabindex="0" aria-label="{text(label)}">{inside}</div></figure>')
