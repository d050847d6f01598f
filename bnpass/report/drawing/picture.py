"""What a drawing shows, without saying how: boxes and arrows of one graph, or of two compared."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import networkx as nx
import numpy as np

from bnpass.ir.graph import Constant, Graph, Op

NORM, ACTIVE, OTHER, PORT = "norm", "active", "plain", "port"
"""Classes of boxes: BatchNorms, nonlinearities, other operators, the graph's inputs and outputs."""

KEPT, CHANGED, ADDED, REMOVED = "", "changed", "added", "removed"
"""What became of a box or an arrow between two graphs; changed: other weights."""

_LARGE = 1 << 24  # entries of a weight from which on its numbers are not compared


@dataclass(frozen=True)
class Marks:
    """What is told apart in a drawing, by operator name.

    Attributes:
        folding: BatchNorms and other maps that a fold would take away; dashed.
        nonlinearities: rounded and coloured.
    """

    folding: Collection[str] = ()
    nonlinearities: Collection[str] = ()

    def style(self, op: Op) -> str:
        """The class of an operator."""
        if op.kind == "BatchNormalization":
            return NORM
        return ACTIVE if op.name in self.nonlinearities else OTHER


@dataclass(frozen=True)
class Box:
    """An operator, or an input or output of the graph.

    Attributes:
        key: unique in the picture; starts with a letter.
        title: the operator's kind, or the name of the input or output.
        name: the operator's name; empty for inputs and outputs.
        style: one of the classes above.
        dashed: a fold would take it away.
        state: what became of it.
        hint: more about it, one fact a line.
    """

    key: str
    title: str
    name: str = ""
    style: str = OTHER
    dashed: bool = False
    state: str = KEPT
    hint: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arrow:
    """A value that one box hands to another; ``text`` is its shape."""

    start: str
    end: str
    text: str = ""
    state: str = KEPT


@dataclass(frozen=True)
class Picture:
    """Boxes and arrows; no arrow leads back."""

    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)


def picture(graph: Graph, marks: Marks = Marks(), only: Collection[str] | None = None) -> Picture:
    """The picture of a graph, or of some of its operators and what they read and make.

    Args:
        graph: what to draw.
        marks: what to tell apart.
        only: names of the operators to draw; None: all, and the graph's inputs and outputs.
    """
    keys = {op.name: f"n{i}" for i, op in enumerate(graph.ops.values())
            if only is None or op.name in only}  # fmt: skip
    boxes = [
        Box(key, graph.ops[name].kind, name, marks.style(graph.ops[name]),
            name in marks.folding, hint=_hint(graph, graph.ops[name]))
        for name, key in keys.items()
    ]  # fmt: skip
    if only is None:
        boxes += [Box(f"in{i}", name, style=PORT) for i, name in enumerate(graph.inputs)]
        boxes += [Box(f"out{i}", name, style=PORT) for i, name in enumerate(graph.outputs)]
    return Picture(boxes, list(_arrows(graph, keys, ports=only is None)))


def _arrows(graph: Graph, keys: dict[str, str], *, ports: bool) -> Iterator[Arrow]:
    sources = {name: f"in{i}" for i, name in enumerate(graph.inputs)} if ports else {}
    for op in graph.ops.values():
        if op.name in keys:
            sources.update({name: keys[op.name] for name in op.outputs if name})
    for value, source in sources.items():
        for use in graph.uses(value):
            if use.op.name in keys:
                yield Arrow(source, keys[use.op.name], shape_text(graph, value))
    for index, name in enumerate(graph.outputs if ports else ()):
        if name in sources:
            yield Arrow(sources[name], f"out{index}", shape_text(graph, name))


def shape_text(graph: Graph, value: str) -> str:
    """``N x 3 x 8 x 8``; empty while the rank is unknown."""
    shape = graph.shape(value)
    return "" if shape is None else " x ".join("?" if d is None else str(d) for d in shape)


def _hint(graph: Graph, op: Op) -> tuple[str, ...]:
    """Shapes of what an operator makes, its constants and its attributes."""
    made = [name for name in op.outputs if name]
    lines = [f"{name}: {shape_text(graph, name) or 'shape not known'}" for name in made]
    for name in op.inputs:
        constant = graph.constant(name)
        if constant is not None:
            shape = " x ".join(map(str, constant.shape)) or "one number"
            lines.append(f"{name}: constant, {shape}, {constant.dtype}")
    return (*lines, *(f"{key} = {value}" for key, value in op.attrs.items()))


# --- two graphs


def difference(before: Graph, after: Graph, marks: Marks = Marks()) -> Picture:
    """Both graphs in one picture; operators are the same where name and kind are, ports by place.

    Args:
        before, after: the graphs.
        marks: what to tell apart, by names in either.
    """
    old, new = picture(before, marks), picture(after, marks)
    keys = {_identity(box): box.key for box in new.boxes}
    match = {box.key: keys.get(_identity(box), f"old_{box.key}") for box in old.boxes}
    shared = set(match.values())
    boxes = [replace(box, state=state_of(box, before, after) if box.key in shared else ADDED)
             for box in new.boxes]  # fmt: skip
    boxes += [replace(box, key=match[box.key], state=REMOVED)
              for box in old.boxes if match[box.key].startswith("old_")]  # fmt: skip
    earlier = [replace(a, start=match[a.start], end=match[a.end]) for a in old.arrows]
    ends = {(a.start, a.end) for a in earlier}
    arrows = [a if (a.start, a.end) in ends else replace(a, state=ADDED) for a in new.arrows]
    now = {(a.start, a.end) for a in new.arrows}
    gone = [replace(a, state=REMOVED) for a in earlier if (a.start, a.end) not in now]
    return Picture(boxes, [*arrows, *_without_circles(arrows, gone)])


def _identity(box: Box) -> tuple[str, str]:
    return ("", box.key) if box.style == PORT else (box.title, box.name)


def state_of(box: Box, before: Graph, after: Graph) -> str:
    """What became of an operator that both graphs have."""
    if box.style == PORT:
        return KEPT
    old, new = before.ops[box.name], after.ops[box.name]
    pairs = list(zip(old.inputs, new.inputs, strict=False))
    constants = [(before.constant(a), after.constant(b)) for a, b in pairs]
    same = all(_equal(a, b) for a, b in constants) and len(old.inputs) == len(new.inputs)
    return KEPT if same and old.attrs == new.attrs else CHANGED


def _equal(one: Constant | None, other: Constant | None) -> bool:
    if one is None or other is None:
        return one is other
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if int(np.prod(one.shape)) > _LARGE:
        return True
    return one.load().tobytes() == other.load().tobytes()


def _without_circles(arrows: list[Arrow], more: list[Arrow]) -> list[Arrow]:
    """Those of ``more`` that lead nowhere back: two graphs need not agree on what comes first."""
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_edges_from((a.start, a.end) for a in arrows)
    whole = graph.copy()
    whole.add_edges_from((a.start, a.end) for a in more)
    if nx.is_directed_acyclic_graph(whole):
        return more
    kept = []
    for arrow in more:
        known = arrow.start in graph and arrow.end in graph
        if known and nx.has_path(graph, arrow.end, arrow.start):
            continue
        graph.add_edge(arrow.start, arrow.end)
        kept.append(arrow)
    return kept
