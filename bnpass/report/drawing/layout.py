"""A layered layout of a directed acyclic graph: layers from top to bottom, few crossings.

1. A node's layer is the length of the longest way to it; sources stand right above their readers.
2. An edge over several layers gets a bend in each; edges over very many keep their two ends only.
3. Within a layer nodes are sorted by the mean place of their neighbours, in sweeps down and up.
4. Places: as near to the neighbours' mean as the order and the distances allow, which is an
   isotonic regression (Barlow et al. 1972), solved exactly in linear time.

Source of the steps: Sugiyama, Tagawa, Toda 1981. networkx gives the topological order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx

Node = Any
"""Whatever a graph's nodes are named by; hashable."""

Point = tuple[float, float]

GAP, LAYER_GAP = 24.0, 44.0
"""Pixels between boxes of a layer, and between layers."""

_SWEEPS = 8
_LONGEST = 64  # layers that an edge may cross with bends; a longer one is a straight stroke
_BEND = 6.0  # pixels that a bend takes in its layer


@dataclass(frozen=True)
class Layout:
    """Where everything lies, in pixels, y downwards.

    Attributes:
        centres: of every node's box.
        routes: the points of every edge, from the bottom of one box to the top of another.
        width, height: of the whole.
    """

    centres: dict[Node, Point]
    routes: list[list[Point]]
    width: float
    height: float


def layered(
    sizes: Mapping[Node, tuple[float, float]], edges: Sequence[tuple[Node, Node]]
) -> Layout:
    """Lay a graph out.

    Args:
        sizes: width and height of every node's box, by node, in the order that ties keep.
        edges: (from, to); no cycle.
    """
    layer = _layers(sizes, edges)
    chains = [_bends(index, edge, layer) for index, edge in enumerate(edges)]
    links = [pair for chain in chains for pair in pairwise(chain)]
    widths = {**dict.fromkeys((n for chain in chains for n in chain[1:-1]), _BEND),
              **{node: width for node, (width, _) in sizes.items()}}  # fmt: skip
    for chain in chains:
        layer.update({n: layer[chain[0]] + i for i, n in enumerate(chain[1:-1], 1)})
    rows = _rows(layer)
    above, below = _neighbours(links)
    _order(rows, above, below)
    x = _places(rows, above, below, widths)
    return _measured(sizes, layer, chains, x)


def _layers(
    sizes: Mapping[Node, object], edges: Sequence[tuple[Node, Node]]
) -> dict[Node, int]:
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(sizes)
    graph.add_edges_from(edges)
    layer: dict[Node, int] = {}
    order = list(nx.topological_sort(graph))
    for node in order:
        layer[node] = max((layer[p] + 1 for p in graph.predecessors(node)), default=0)
    for node in reversed(order):
        if not graph.in_degree(node) and graph.out_degree(node):
            layer[node] = min(layer[s] for s in graph.successors(node)) - 1
    return layer


def _bends(index: int, edge: tuple[Node, Node], layer: Mapping[Node, int]) -> list[Node]:
    """An edge's nodes with one bend a layer that it crosses."""
    start, end = edge
    crossed = layer[end] - layer[start] - 1
    bends = range(crossed if crossed <= _LONGEST else 0)
    return [start, *(("bend", index, step) for step in bends), end]


def _rows(layer: Mapping[Node, int]) -> list[list[Node]]:
    rows: list[list[Node]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node, index in layer.items():
        rows[index].append(node)
    return rows


def _neighbours(
    links: Iterable[tuple[Node, Node]],
) -> tuple[dict[Node, list[Node]], dict[Node, list[Node]]]:
    above: dict[Node, list[Node]] = {}
    below: dict[Node, list[Node]] = {}
    for start, end in links:
        above.setdefault(end, []).append(start)
        below.setdefault(start, []).append(end)
    return above, below


def _order(
    rows: list[list[Node]], above: Mapping[Node, list[Node]], below: Mapping[Node, list[Node]]
) -> None:
    """Sort every row by the mean place of its neighbours, in place."""
    place = {node: float(i) for row in rows for i, node in enumerate(row)}
    for sweep in range(_SWEEPS):
        near, turn = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for row in turn:
            if len(row) > 1:
                means = {n: _mean([place[m] for m in near.get(n, ())], place[n]) for n in row}
                row.sort(key=means.__getitem__)
                place.update((node, float(i)) for i, node in enumerate(row))


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _places(
    rows: list[list[Node]], above: Mapping[Node, list[Node]], below: Mapping[Node, list[Node]],
    widths: Mapping[Node, float],
) -> dict[Node, float]:
    """The x of every node and bend."""
    x: dict[Node, float] = {}
    for row in rows:
        x.update(zip(row, _spread([0.0] * len(row), row, widths), strict=True))
    for sweep in range(_SWEEPS):
        near, turn = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for row in turn:
            wanted = [_mean([x[m] for m in near.get(n, ())], x[n]) for n in row]
            x.update(zip(row, _spread(wanted, row, widths), strict=True))
    return x


def _spread(
    wanted: Sequence[float], row: Sequence[Node], widths: Mapping[Node, float]
) -> list[float]:
    """The places nearest to those wanted (least squares) at which no two boxes touch."""
    offsets, at = [], 0.0
    for before, node in zip([None, *row], row, strict=False):
        at += 0.0 if before is None else (widths[before] + widths[node]) / 2 + GAP
        offsets.append(at)
    blocks: list[tuple[float, int]] = []  # pooled neighbours: their mean, and how many
    for value in (w - o for w, o in zip(wanted, offsets, strict=True)):
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            other, size = blocks.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        blocks.append((mean, count))
    flat = [mean for mean, count in blocks for _ in range(count)]
    return [place + offset for place, offset in zip(flat, offsets, strict=True)]


def _measured(
    sizes: Mapping[Node, tuple[float, float]], layer: Mapping[Node, int],
    chains: Sequence[Sequence[Node]], x: Mapping[Node, float],
) -> Layout:
    """Pixels: the leftmost box at ``GAP``, layers as high as their highest box."""
    heights = [0.0] * (max(layer.values(), default=-1) + 1)
    for node, (_, height) in sizes.items():
        heights[layer[node]] = max(heights[layer[node]], height)
    middles, top = [], GAP
    for height in heights:
        middles.append(top + height / 2)
        top += height + LAYER_GAP
    left = min((x[n] - w / 2 for n, (w, _) in sizes.items()), default=0.0) - GAP
    left = min(left, min((x[n] for chain in chains for n in chain), default=0.0) - GAP)
    centres = {node: (x[node] - left, middles[layer[node]]) for node in sizes}
    routes = [
        [(centres[c[0]][0], centres[c[0]][1] + sizes[c[0]][1] / 2),
         *((x[n] - left, middles[layer[n]]) for n in c[1:-1]),
         (centres[c[-1]][0], centres[c[-1]][1] - sizes[c[-1]][1] / 2)]
        for c in chains
    ]  # fmt: skip
    right = max((cx + sizes[n][0] / 2 for n, (cx, _) in centres.items()), default=0.0)
    right = max([right, *(px for route in routes for px, _ in route)])
    return Layout(centres, routes, right + GAP, max(top - LAYER_GAP + GAP, GAP))
