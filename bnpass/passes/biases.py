"""Biases that a BatchNorm makes redundant: constants sent forward by the table of rules.

Source: arXiv:1502.03167, section 3.2: b can be ignored, since beta subsumes it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.edits import BiasDrop
from bnpass.ir.graph import Graph, Op
from bnpass.ir.operators import operator
from bnpass.passes.planner import Planner
from bnpass.passes.propagation import Propagation
from bnpass.passes.sites import InsertionPoint, Site, any_map
from bnpass.rules import MapRefusedError
from bnpass.rules.maps import map_of


def drop_biases(
    sites: list[Site],
    places: dict[str, tuple[InsertionPoint, list[str]]],
    graph: Graph,
    planner: Planner,
) -> list[Site]:
    """Drop every bias that reaches sites, and only sites, as a per-channel constant."""
    alone = [site for site in sites if site.readers is not None]
    sites = [site for site in sites if site.readers is None]
    stops = frozenset(site.value for site in sites)
    by_value = {site.value: site for site in sites}
    seen: set[tuple[str, int]] = set()
    for place, _ in places.values():
        if place.readers is not None:
            continue
        for drop, m in _biases(place.propagation, graph, planner):
            if (drop.op.name, drop.index) in seen:
                continue
            seen.add((drop.op.name, drop.index))
            found = _reached(drop, m, stops, graph, planner)
            arrived = {} if found is None else _arrivals(found, by_value)
            if not _fold_without(drop, [by_value[value] for value in arrived], planner):
                continue
            if found is not None and arrived:
                _relate(found, planner)
            first = True
            for value, vector in arrived.items():
                site = by_value[value]
                by_value[value] = replace(
                    site,
                    constant=site.constant + vector,
                    drops=(*site.drops, drop) if first else site.drops,
                    dropped=(*site.dropped, drop.op.name),
                )
                first = False
    return [*(by_value[site.value] for site in sites), *alone]


def _fold_without(drop: BiasDrop, sites: list[Site], planner: Planner) -> bool:
    """Whether the sites' BatchNorms still fold: the Add that goes may be what took the shift in."""
    if not drop.whole or not sites:
        return True
    planner.committed.removed[drop.op.name] = drop.data
    try:
        for site in sites:
            planner.place(site.value, any_map(site.axis, site.rank, site.channels))
    except MapRefusedError:
        del planner.committed.removed[drop.op.name]
        return False
    return True


def _biases(propagation: Propagation, graph: Graph, planner: Planner) -> list[tuple[BiasDrop, Map]]:
    """Biases of a site's absorbers and of the Adds in front of it, as maps on their outputs."""
    found = []
    last_first = sorted(
        {*propagation.into, *propagation.crossed}, key=graph.order.__getitem__, reverse=True
    )
    for name in last_first:  # an Add that goes lets the biases in front of it pass
        op = graph.ops[name]
        try:
            index = operator(op.kind).bias
            if index is not None and op.input(index):
                found.append((BiasDrop(op, index), _own_bias(op, planner)))
            elif operator(op.kind).sum and operator(op.kind).affine:
                pair = map_of(op, planner.context)
                if (
                    pair is not None
                    and not pair[1].has_scale
                    and not graph.is_output(op.outputs[0])
                ):
                    data, m = pair
                    found.append((BiasDrop(op, 1 - data, True, data), m))
        except MapRefusedError:
            continue
    return found


def existing_biases(graph: Graph, planner: Planner) -> list[tuple[str, str]]:
    """(BatchNorm, operator) for every bias that only adds a constant to a BatchNorm's input."""
    norms = [op for op in graph.ops_in_order if op.kind == "BatchNormalization"]
    stops = {op.inputs[0]: op for op in norms if len(graph.uses(op.inputs[0])) == 1}
    found = []
    for op in graph.ops_in_order:
        index = operator(op.kind).bias
        if index is None or not op.input(index):
            continue
        try:
            m = _own_bias(op, planner)
            propagation = planner.forward(op.outputs[0], m, frozenset(stops))
        except MapRefusedError:
            continue
        if (
            propagation.arrived
            and not (propagation.input_maps or propagation.constants)
            and m.has_shift
        ):
            found.append((stops[next(iter(propagation.arrived))].name, op.name))
    return found


def _own_bias(op: Op, planner: Planner) -> Map:
    array = planner.context.current(op, 2)
    rank = len(planner.context.shape(op.outputs[0]))
    if op.kind != "Gemm":
        return Map.along(1, rank, np.ones(1), array)
    array = array * float(op.attrs.get("beta", 1.0))
    shift = array.reshape((1,) * (rank - array.ndim) + array.shape)
    m = Map(np.ones((1,) * rank), shift)
    if any(axis != rank - 1 for axis in m.axes):
        raise MapRefusedError("its C is no per-channel bias", op)
    return m


def _reached(
    drop: BiasDrop, m: Map, stops: frozenset[str], graph: Graph, planner: Planner
) -> Propagation | None:
    """A bias's way forward to sites alone; None if it also goes elsewhere."""
    try:
        propagation = planner.forward(drop.op.outputs[0], m, stops)
    except MapRefusedError:
        return None
    if propagation.input_maps or propagation.constants:
        return None
    if any(graph.ops[name].kind == "Dropout" for name in propagation.crossed):
        return None
    return propagation


def _arrivals(propagation: Propagation, by_value: dict[str, Site]) -> dict[str, np.ndarray]:
    """What a bias adds to every site that it reaches; empty if it is none at some of them."""
    found = {}
    for value, shift in propagation.arrived.items():
        site = by_value[value]
        vectors = shift.vectors(site.axis, site.channels)
        if vectors is None or shift.has_scale:
            return {}
        found[value] = vectors[1]
    return found


def _relate(propagation: Propagation, planner: Planner) -> None:
    """Note what becomes of the values that a bias no longer reaches."""
    for value, m in (*propagation.carried.items(), *propagation.arrived.items()):
        planner.committed.relations.move(value, later=m)
