"""Graphs inside of graphs: the branches of an If, the bodies of Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

Place = tuple[tuple[str, str, int], ...]
"""Where a nested body is: (first output of its node, attribute, number) from the main graph on."""

_WITH_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})  # of ONNX's own operators


def has_bodies(node: onnx.NodeProto) -> bool:
    """Whether a node has nested graphs; cheap, as nearly none has."""
    if node.op_type not in _WITH_BODIES and node.domain in ("", "ai.onnx"):
        return False
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs nested in a node's attributes."""
    if has_bodies(node):
        yield from (body for _, body in placed_bodies(node))


def placed_bodies(
    node: onnx.NodeProto, place: Place = ()
) -> Iterator[tuple[Place, onnx.GraphProto]]:
    """The graphs nested in a node's attributes, each with its place."""
    if not has_bodies(node):
        return
    first = next((name for name in node.output if name), node.name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield (*place, (first, attribute.name, 0)), attribute.g
        for number, graph in enumerate(attribute.graphs):
            yield (*place, (first, attribute.name, number)), graph


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside of its nodes."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def nodes_within(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of the bodies in them."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from nodes_within(body.node)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of bodies inside it, of the model's functions."""
    yield from nodes_within(model.graph.node)
    for function in model.functions:
        yield from nodes_within(function.node)


def captured(graph: onnx.GraphProto) -> set[str]:
    """Names that a body reads from outside of itself."""
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    own |= {t.values.name for t in graph.sparse_initializer}
    own |= {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input if name}
    read |= {o.name for o in graph.output}
    for node in graph.node:
        read |= captured_by(node)
    return read - own


def captured_by(node: onnx.NodeProto) -> set[str]:
    """Names that a node's bodies read from outside of themselves."""
    if not has_bodies(node):
        return set()
    return set().union(*(captured(body) for body in bodies(node)))
