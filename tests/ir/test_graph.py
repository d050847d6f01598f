"""The neutral view."""

from __future__ import annotations

import numpy as np
import pytest

from bnpass.ir.graph import Constant, Graph, Op, Use
from bnpass.ir.ranks import rank_of

SHAPES = {"x": ("N", 3), "h": ("N", 4), "y": ("N", 4)}


def graph(ops, outputs=("y",), constants=()):
    found = {c.name: c for c in constants}
    return Graph(ops, ["x"], outputs, found, SHAPES.get, lambda name: "float32")


def layers():
    return [Op("act", "Relu", ["h"], ["y"]), Op("fc", "Gemm", ["x", "w", ""], ["h"])]


def test_operators_come_behind_what_they_read():
    g = graph(layers())
    assert [op.name for op in g.ops_in_order] == ["fc", "act"]
    assert g.order == {"fc": 0, "act": 1}


def test_producers_uses_and_outputs():
    g = graph(layers())
    assert g.producer("h") is g.ops["fc"] and g.producer("x") is None
    assert g.uses("h") == [Use(g.ops["act"], 0)] and g.uses("y") == []
    assert g.is_output("y") and not g.is_output("h")
    assert g.shape("x") == ("N", 3) and rank_of(g, "x") == 2 and rank_of(g, "unknown") is None


def test_an_input_left_out_is_no_use():
    op = layers()[1]
    assert op.input(2) == "" and op.input(9) == ""
    assert graph(layers()).uses("") == []


def test_a_value_read_by_a_body_is_used():
    op = Op("if", "If", ["c"], ["y"], captured=("h",))
    g = graph([Op("fc", "Gemm", ["x", "w"], ["h"]), op])
    assert g.uses("h") == [Use(op, -1)]
    assert [o.name for o in g.ops_in_order] == ["fc", "if"]


def test_names_are_unique():
    with pytest.raises(ValueError, match="'same'"):
        graph([Op("same", "Relu", ["x"], ["h"]), Op("same", "Relu", ["h"], ["y"])])


def test_the_networkx_graph_has_an_edge_for_every_value():
    g = graph(layers())
    assert set(g.nx.edges) == {("fc", "act")} and set(g.nx.nodes) == {"fc", "act"}


def test_a_constant_is_loaded_on_demand():
    loads = []

    def load():
        loads.append(1)
        return np.ones((2, 3), np.float32)

    constant = Constant("w", load, (2, 3), "float32")
    assert constant.shape == (2, 3) and constant.dtype == "float32" and not loads
    assert constant.float64().dtype == np.float64 and len(loads) == 1
    assert Constant("w", load).shape == (2, 3)
    g = graph(layers(), constants=[constant])
    assert g.constant("w") is constant and g.constant("x") is None
