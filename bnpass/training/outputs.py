"""Views on a traced network that end at another value, sharing every parameter with it."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from bnpass.errors import UsageError, close_matches

_MODULES: dict[type[nn.Module], str] = {
    nn.Softmax: "softmax",
    nn.Softmax2d: "softmax",
    nn.LogSoftmax: "log_softmax",
    nn.Sigmoid: "sigmoid",
}
_NAMES = ("log_softmax", "logsoftmax", "softmax", "sigmoid")
# Between the last nonlinearity and the output these only rename or lay out the values.
_SHAPE_ONLY = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "identity",
               "Identity", "Flatten", "Unflatten", "clone", "float", "to"}


def logits_module(gm: fx.GraphModule) -> fx.GraphModule:
    """The network up to the value in front of a final Softmax, LogSoftmax or Sigmoid.

    The view shares modules, parameters and buffers with ``gm``: training it trains ``gm``. Without
    such an ending it computes what ``gm`` computes.
    """
    return split_ending(gm)[0]


def split_ending(gm: fx.GraphModule) -> tuple[fx.GraphModule, str]:
    """:func:`logits_module` and what was cut off: ``"softmax"``, ``"log_softmax"``, ``"sigmoid"``.

    The name is empty when the network ends in none of them.
    """
    graph, _ = _copy(gm)
    node, kind = _ending(gm, _result(graph))
    if node is not None:
        node.replace_all_uses_with(node.all_input_nodes[0])
        _drop_unread(graph)
    return fx.GraphModule(gm, graph), kind


def first_output(gm: fx.GraphModule) -> fx.GraphModule:
    """The network with its first output alone, sharing every parameter with ``gm``."""
    return fx.GraphModule(gm, _copy(gm)[0])


def value_module(gm: fx.GraphModule, name: str) -> fx.GraphModule:
    """The network up to the value of one fx node, sharing every parameter with ``gm``.

    Args:
        gm: the network.
        name: a node's name, the path of the module that a node calls, or the name of a node or a
            value of the ONNX model that the network came from. ``"before:NAME"`` is the first input
            of NAME: what goes into a nonlinearity, with BN or without.

    Raises:
        UsageError: there is no such value.
    """
    known = _names(gm)
    wanted = name.removeprefix("before:")
    if wanted not in known:
        raise UsageError(f"no value {wanted!r} in the network",
                         close_matches(wanted, known) or "names are those of the model's nodes")
    node = known[wanted]
    if wanted != name:
        if not node.all_input_nodes:
            raise UsageError(f"{wanted!r} has no input", "leave out the 'before:'")
        node = node.all_input_nodes[0]
    graph, copies = _copy(gm)
    output = next(n for n in graph.nodes if n.op == "output")
    output.args = (copies[node],)
    _drop_unread(graph)
    return fx.GraphModule(gm, graph)


def _names(gm: fx.GraphModule) -> dict[str, fx.Node]:
    known: dict[str, fx.Node] = {}
    nodes = [n for n in gm.graph.nodes if n.op != "output"]
    for node in nodes:
        # The importer notes (ONNX node, operator, its outputs); the last fx node of them counts.
        origin = node.meta.get("onnx")
        if origin:
            known |= dict.fromkeys((origin[0], *origin[2]), node)
    known |= {str(n.target): n for n in nodes if n.op == "call_module"}
    return known | {n.name: n for n in nodes}


def _copy(gm: fx.GraphModule) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(gm.graph, copies)
    graph.output(_first(result))
    return graph, copies


def _drop_unread(graph: fx.Graph) -> None:
    """Remove what nobody reads; fx's own pass would keep Dropout, and needs a module."""
    for node in reversed(graph.nodes):
        in_place = node.op == "call_method" and str(node.target).endswith("_")
        if node.op not in ("placeholder", "output") and not node.users and not in_place:
            graph.erase_node(node)


def _first(value: Any) -> Any:
    """The first output of a network with several; training looks at that one."""
    while isinstance(value, tuple | list):
        value = value[0]
    return next(iter(value.values())) if isinstance(value, dict) else value


def _result(graph: fx.Graph) -> fx.Node:
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    node = output.args[0]
    assert isinstance(node, fx.Node)
    return node


def _ending(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, str]:
    while True:
        kind = _kind(gm, node)
        if kind:
            return node, kind
        through = _name(gm, node) in _SHAPE_ONLY and len(node.all_input_nodes) >= 1
        if not through or not isinstance(node.args[0], fx.Node):
            return None, ""
        node = node.args[0]


def _kind(gm: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        return next((k for kind, k in _MODULES.items() if isinstance(module, kind)), "")
    if node.op not in ("call_function", "call_method") or node.target is operator.getitem:
        return ""
    # torch.softmax, F.softmax, Tensor.softmax and the importer's own all say it in their name.
    name = _name(gm, node)
    found = next((n for n in _NAMES if name == n or name.startswith(n + "_")), "")
    return "log_softmax" if found == "logsoftmax" else found


def _name(gm: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(gm.get_submodule(str(node.target))).__name__
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", "")).lstrip("_")
    return str(node.target)
