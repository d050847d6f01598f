"""Layout and pictures: nothing overlaps, arrows lead down, hostile names stay text."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bnpass.ir.graph import Constant, Graph, Op
from bnpass.report.drawing import difference, picture
from bnpass.report.drawing.layout import GAP, layered
from bnpass.report.drawing.picture import ADDED, CHANGED, KEPT, REMOVED
from bnpass.report.drawing.svg import svg
from bnpass.report.drawing.text import dot, mermaid


@st.composite
def dags(draw: st.DrawFn) -> tuple[dict[int, tuple[float, float]], list[tuple[int, int]]]:
    count = draw(st.integers(1, 30))
    sizes = {i: (draw(st.floats(5, 200)), draw(st.floats(5, 60))) for i in range(count)}
    edges = [(draw(st.integers(0, i - 1)), i) for i in range(1, count) for _ in range(2)]
    return sizes, edges


@settings(max_examples=50, deadline=None)
@given(dags())
def test_boxes_do_not_touch_and_edges_lead_down(net):
    sizes, edges = net
    layout = layered(sizes, edges)
    for (start, end), route in zip(edges, layout.routes, strict=True):
        ys = [y for _, y in route]
        assert ys == sorted(ys) and len(set(ys)) == len(ys)
        assert route[0][0] == layout.centres[start][0] and route[-1][0] == layout.centres[end][0]
    rows: dict[float, list[int]] = {}
    for node, (x, y) in layout.centres.items():
        width, height = sizes[node]
        assert x - width / 2 >= 0 and x + width / 2 <= layout.width + 1e-6
        assert y - height / 2 >= 0 and y + height / 2 <= layout.height + 1e-6
        rows.setdefault(y, []).append(node)
    for row in rows.values():
        row.sort(key=lambda n: layout.centres[n][0])
        for left, right in pairwise(row):
            distance = layout.centres[right][0] - layout.centres[left][0]
            assert distance >= (sizes[left][0] + sizes[right][0]) / 2 + GAP - 1e-6


def test_an_edge_over_very_many_layers_keeps_its_ends():
    sizes = dict.fromkeys(range(200), (10.0, 10.0))
    layout = layered(sizes, [*((i, i + 1) for i in range(199)), (0, 199)])
    assert len(layout.routes[-1]) == 2


def test_nothing_to_draw():
    layout = layered({}, [])
    assert layout.centres == {} and math.isfinite(layout.width)


def chain(*kinds: str, weight: float = 1.0, name: str = "{}") -> Graph:
    ops = [Op(name.format(k.lower()), k, [f"v{i}", *(["w"] if k == "Conv" else [])], [f"v{i + 1}"])
           for i, k in enumerate(kinds)]  # fmt: skip
    array = np.full(3, weight)
    constants = {"w": Constant("w", lambda: array)}
    return Graph(ops, ["v0"], [f"v{len(kinds)}"], constants, lambda _: ("N", 3), lambda _: None)


def states(before: Graph, after: Graph) -> dict[str, str]:
    return {box.title: box.state for box in difference(before, after).boxes if box.name}


def test_a_difference_says_what_became_of_every_operator():
    before, after = chain("Conv", "BatchNormalization", "Relu"), chain("Conv", "Relu", weight=2.0)
    assert states(before, after) == {"Conv": CHANGED, "BatchNormalization": REMOVED, "Relu": KEPT}
    assert states(after, before) == {"Conv": CHANGED, "BatchNormalization": ADDED, "Relu": KEPT}
    assert set(states(before, before).values()) == {KEPT}
    arrows = difference(before, after).arrows
    assert sorted(a.state for a in arrows) == sorted([KEPT, KEPT, ADDED, REMOVED, REMOVED])


def test_two_graphs_that_disagree_about_the_order_make_no_circle():
    drawn = difference(chain("Conv", "Relu"), chain("Relu", "Conv"))
    assert "<svg" in svg(drawn)


def test_hostile_names_stay_text():
    graph = chain("Conv", "Relu", name='{}"]<b>&\x1b[2J\n--></svg>')
    texts = [svg(picture(graph), "</title><script>"), dot(picture(graph)), mermaid(picture(graph))]
    assert not any("\x1b" in text for text in texts)
    assert not any("<b>" in text or "<script>" in text for text in (texts[0], texts[2]))
    assert r'[label="Relu\nrelu\"]' in texts[1]
    root = ET.fromstring(svg(picture(graph)))
    assert len(root.findall("./{*}g")) == 4


def test_a_part_of_a_graph():
    drawn = picture(chain("Conv", "BatchNormalization", "Relu"), only={"conv", "relu"})
    assert [box.title for box in drawn.boxes] == ["Conv", "Relu"] and not drawn.arrows
