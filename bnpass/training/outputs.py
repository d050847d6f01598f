"""What a network gives, by name; and views on it that end elsewhere and share every parameter."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from bnpass.errors import InputError, UsageError, close_matches

Tensor = torch.Tensor

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
ALONE = "output"
"""The name of a network's only output, where it has none."""


# --- outputs by name ------------------------------------------------------------------------------


def outputs_by_name(result: Any, names: Iterable[str] = ()) -> dict[str, Any]:
    """What a network returned as a flat mapping: ``{"out.a": y}`` for ``{"out": {"a": y}}``.

    Args:
        result: a tensor, or tuples, lists, mappings and dataclasses of tensors, nested.
        names: take the place of the positions, where there are as many.

    Raises:
        InputError: there is no tensor in it.
    """
    found = dict(_flat(result, ""))
    if not found:
        raise InputError(f"the network returns no tensor but {type(result).__name__}",
                         "its forward must return what the loss looks at")
    given = list(names)
    return dict(zip(given, found.values(), strict=True)) if len(given) == len(found) else found


def _flat(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Tensor | fx.Node):
        yield path or ALONE, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flat(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        for name, part in zip(names, value, strict=True):
            yield from _flat(part, f"{path}.{name}" if path else str(name))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            part = getattr(value, item.name)
            yield from _flat(part, f"{path}.{item.name}" if path else item.name)


def output_names(module: nn.Module) -> list[str]:
    """The ONNX names of an imported module's outputs; none for others."""
    meta = getattr(module, "meta", None)
    return list(meta.get("bnpass", {}).get("outputs", ())) if isinstance(meta, dict) else []


# --- views ----------------------------------------------------------------------------------------


class ByName(nn.Module):
    """An imported network that returns its several outputs by their names in the file."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The outputs by name."""
        return dict(zip(self.names, self.module(*args, **kwargs), strict=True))


class Heads(nn.Module):
    """A network that returns some of its outputs, of some the value in front of the ending.

    Args:
        module: any module; its endings are found while it runs.
        names: the outputs that are returned: one as a tensor, several as a tuple.
        cut: of which the value in front of a final Softmax, LogSoftmax or Sigmoid is returned.
    """

    def __init__(self, module: nn.Module, names: list[str], cut: set[str]) -> None:
        super().__init__()
        self.module, self.names, self.cut = module, names, cut

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs that were asked for."""
        if not self.cut:
            found = outputs_by_name(self.module(*args, **kwargs))
        else:
            with Endings() as seen:
                found = outputs_by_name(self.module(*args, **kwargs))
            found = {name: seen.before(value)[0] if name in self.cut else value
                     for name, value in found.items()}
        values = tuple(found[name] for name in self.names)
        return values[0] if len(values) == 1 else values


class Endings(TorchFunctionMode):
    """Remembers, while a network runs, what went into every Softmax, LogSoftmax and Sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[Tensor, Tensor, str]] = {}

    def before(self, value: Tensor) -> tuple[Tensor, str]:
        """The value in front of an ending and its kind; the value itself where it is no ending."""
        found = self._seen.get(id(value))
        return (found[1], found[2]) if found is not None else (value, "")

    def __torch_function__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = args[0] if args else (kwargs or {}).get("input")
        if isinstance(result, Tensor) and isinstance(given, Tensor):
            name = str(getattr(func, "__name__", ""))
            if name in _NAMES:
                self._seen[id(result)] = (result, given, name)
            elif name in _SHAPE_ONLY and id(given) in self._seen:
                _, value, kind = self._seen[id(given)]
                laid_out = func(value, *args[1:], **(kwargs or {}))
                self._seen[id(result)] = (result, laid_out, kind)
        return result


def logits_module(gm: fx.GraphModule) -> fx.GraphModule:
    """The network up to the value in front of a final Softmax, LogSoftmax or Sigmoid.

    The view shares modules, parameters and buffers with ``gm``: training it trains ``gm``. Without
    such an ending it computes what ``gm`` computes.
    """
    return split_ending(gm)[0]


def split_ending(gm: fx.GraphModule) -> tuple[fx.GraphModule, str]:
    """:func:`logits_module` and what was cut off: ``"softmax"``, ``"log_softmax"``, ``"sigmoid"``.

    The name is empty when the network ends in none of them. Of several outputs the first counts.
    """
    name, kind = next(iter(endings_of(gm).items()))
    return heads_of_graph(gm, [name], {name}), kind


def endings_of(gm: fx.GraphModule) -> dict[str, str]:
    """For each output of a traced network what it ends in; empty for none of the three."""
    return {name: _ending(gm, node)[1] for name, node in _results(gm, gm.graph).items()}


def heads_of_graph(gm: fx.GraphModule, names: list[str], cut: set[str]) -> fx.GraphModule:
    """A traced network with some of its outputs alone, as :class:`Heads`; nothing else runs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(gm.graph, copies)
    results = _results(gm, gm.graph)
    values = []
    for name in names:
        node, ending = results[name], _ending(gm, results[name])[0]
        whole = name not in cut or ending is None
        values.append(copies[node] if whole else _without(graph, node, ending, copies))
    graph.output(values[0] if len(values) == 1 else tuple(values))
    _drop_unread(graph)
    return fx.GraphModule(gm, graph)


def _without(
    graph: fx.Graph, node: fx.Node, ending: fx.Node | None, copies: dict[fx.Node, fx.Node]
) -> fx.Node:
    """The value of ``node`` without the ending that lies some layouts in front of it."""
    source = node.all_input_nodes[0]
    if node is ending:
        return copies[source]
    inner = _without(graph, source, ending, copies)
    return graph.node_copy(node, lambda n: inner if n is source else copies[n])


def _results(gm: fx.GraphModule, graph: fx.Graph) -> dict[str, fx.Node]:
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    return outputs_by_name(output.args[0], output_names(gm))


def first_output(gm: fx.GraphModule) -> fx.GraphModule:
    """The network with its first output alone, sharing every parameter with ``gm``."""
    return heads_of_graph(gm, [next(iter(_results(gm, gm.graph)))], set())


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
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(gm.graph, copies)
    graph.output(copies[node])
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


def _drop_unread(graph: fx.Graph) -> None:
    """Remove what nobody reads; fx's own pass would keep Dropout, and needs a module."""
    for node in reversed(graph.nodes):
        in_place = node.op == "call_method" and str(node.target).endswith("_")
        if node.op not in ("placeholder", "output") and not node.users and not in_place:
            graph.erase_node(node)


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
