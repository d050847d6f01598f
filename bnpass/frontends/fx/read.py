"""torch.fx.GraphModule -> the neutral view."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from bnpass.frontends.fx import vocabulary  # noqa: F401 - fills the tables
from bnpass.frontends.fx.call import Call, TensorSlot, UnknownError, to_numpy
from bnpass.frontends.fx.hooks import is_hooked
from bnpass.frontends.fx.info import META, Info, dtype_name
from bnpass.frontends.fx.inplace import rename, written
from bnpass.frontends.fx.targets import function_handler, function_name, module_handler
from bnpass.ir.graph import Constant, Dim, Graph, Op

Values = Any
"""A value name, a tuple of such (nested), or None for what is no tensor."""

_COMPUTED = frozenset(
    {"t", "transpose", "permute", "reshape", "view", "flatten", "unsqueeze", "squeeze", "expand",
     "contiguous", "exp", "log", "sqrt", "rsqrt", "square", "pow", "abs", "neg", "reciprocal",
     "add", "sub", "mul", "div", "truediv", "true_divide", "sum", "mean", "amax", "amin", "norm",
     "softplus", "sigmoid", "tanh", "relu", "clamp", "to", "float", "double", "half", "bfloat16",
     "detach", "cat", "stack", "var", "std", "matmul", "mm", "type_as", "T", "getattr", "clone",
     "softmax", "repeat", "getitem", "flip", "where", "maximum", "minimum", "_to_copy", "alias"}
)  # fmt: skip
"""Functions of constants alone that make constants."""


@dataclass(eq=False)
class TracedModel:
    """A GraphModule with its neutral view.

    Attributes:
        gm: the module; edits are applied to it in place.
        values: what every node makes.
        nodes: the node of every operator that stands for a whole node, by operator name.
        slots: where the constant inputs of an operator are written, by (operator, input index).
        sources: the node that makes each value.
        attributes: path of every constant that is a parameter or buffer, by value name.
        origins: the node of every operator, also of those that are only a part of it.
    """

    gm: fx.GraphModule
    values: dict[fx.Node, Values] = field(default_factory=dict)
    infos: dict[str, Info] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    slots: dict[tuple[str, int], TensorSlot] = field(default_factory=dict)
    sources: dict[str, fx.Node] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    pinned: dict[str, str] = field(default_factory=dict)
    origins: dict[str, fx.Node] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _graph: Graph | None = None

    @property
    def graph(self) -> Graph:
        """The view."""
        assert self._graph is not None
        return self._graph

    def op_name(self, node: fx.Node) -> str:
        """A module's path or a node's name; numbered where a module is called again."""
        base = str(node.target) if node.op == "call_module" else node.name
        name, n = base, 1
        while name in self.nodes:
            n += 1
            name = f"{base}#{n}"
        return name

    def unique(self, name: str) -> str:
        """A value name that is not in use."""
        base, n = name, 1
        while name in self._names:
            n += 1
            name = f"{base}.{n}"
        self._names.add(name)
        return name

    def add(self, op: Op, node: fx.Node, *, whole: bool = True) -> None:
        """Append an operator of a node; ``whole``: it is what the node stands for."""
        self.ops.append(op)
        self.origins[op.name] = node
        if whole:
            self.nodes[op.name] = node

    def bind(self, node: fx.Node) -> list[str]:
        """Name what a node makes; returns the names."""
        if node not in self.values:
            self.values[node] = self._named(node, node.name, node.meta.get(META))
        flat = list(flatten(self.values[node]))
        return flat or [f"{node.name}#none"]

    def _named(self, node: fx.Node, name: str, info: Any) -> Values:
        if isinstance(info, tuple):
            return tuple(self._named(node, f"{name}.{i}", one) for i, one in enumerate(info))
        self._names.add(name)
        self.sources[name] = node
        if isinstance(info, Info):
            self.infos[name] = info
        return name

    def pin(self, path: str, tensor: torch.Tensor, reason: str) -> str:
        """A tensor that looks constant, and that nothing may change."""
        self.pinned[path] = reason
        self._names.add(path)
        self.infos[path] = Info(tuple(tensor.shape), dtype_name(tensor.dtype))
        return path

    def tensor(self, path: str, tensor: torch.Tensor) -> str:
        """A parameter or buffer as a constant."""
        if path in self.constants or path in self.pinned:
            return path
        self._names.add(path)
        dtype = dtype_name(tensor.dtype)
        self.infos[path] = Info(tuple(tensor.shape), dtype)
        self.constants[path] = Constant(path, lambda: to_numpy(tensor), tuple(tensor.shape), dtype)
        self.attributes[path] = path
        return path


def flatten(values: Values) -> list[str]:
    """The value names in a nested tuple."""
    if isinstance(values, tuple):
        return [name for one in values for name in flatten(one)]
    return [values] if isinstance(values, str) else []


def read(gm: fx.GraphModule) -> TracedModel:
    """Build the view of a module whose nodes carry their shapes (``info.propagate``)."""
    reading = TracedModel(gm)
    shared = rename(gm)
    changed = {written(gm, n) for n in gm.graph.nodes}
    outputs: list[str] = []
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            reading.bind(node)
        elif node.op == "get_attr":
            _attribute(reading, node, changed)
        elif node.op == "output":
            outputs = [name for n in node.all_input_nodes for name in flatten(reading.values[n])]
        else:
            _node(reading, node)
        for other in shared.get(node, ()):
            _seen_through_memory(reading, node, other)
    _finish(reading, outputs)
    return reading


def _finish(reading: TracedModel, outputs: list[str]) -> None:
    gm, infos = reading.gm, reading.infos

    def shape(name: str) -> tuple[Dim, ...] | None:
        constant = reading.constants.get(name)
        if constant is not None:
            return constant.shape
        info = infos.get(name)
        return info.shape if info is not None else None

    def dtype(name: str) -> str | None:
        constant = reading.constants.get(name)
        if constant is not None:
            return constant.dtype
        info = infos.get(name)
        return info.dtype if info is not None else None

    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    inputs = [name for n in placeholders for name in flatten(reading.values[n])]
    reading._graph = Graph(
        reading.ops, inputs, outputs, reading.constants, shape, dtype, reading.pinned
    )


# --- nodes -------------------------------------------------------------------------------------


def _attribute(reading: TracedModel, node: fx.Node, changed: set[fx.Node | None]) -> None:
    path = str(node.target)
    held: Any = reading.gm
    for part in path.split("."):
        held = getattr(held, part)
    if not isinstance(held, torch.Tensor):
        reading.values[node] = None
        return
    if node in changed:
        reading.pinned[path] = "a buffer that the network itself changes"
        reading.constants.pop(path, None)
        reading.infos[path] = Info(tuple(held.shape), dtype_name(held.dtype))
    reading.values[node] = reading.tensor(path, held)
    reading.sources.setdefault(path, node)


def _node(reading: TracedModel, node: fx.Node) -> None:
    if _alias(reading, node) or _constant(reading, node):
        return
    module = reading.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    if module is not None:
        handler = None if is_hooked(module, node) else module_handler(module)
    else:
        handler = function_handler(node)
    count = len(reading.ops)
    call = Call(reading, node, module)
    if handler is not None:
        try:
            handler(call, *node.args, **_keywords(node))
            return
        except (UnknownError, TypeError):
            del reading.ops[count:]
            reading.nodes.pop(call.name, None)
    _opaque(call)


def _keywords(node: fx.Node) -> dict[str, Any]:
    """Keywords as torch's Python functions call them."""
    return {"x" if k in ("input", "self") else k: v for k, v in node.kwargs.items()}


def _opaque(call: Call) -> None:
    """An operator that no map passes."""
    reading, node = call.reading, call.node
    inputs = [name for n in node.all_input_nodes for name in flatten(reading.values.get(n))]
    outputs = reading.bind(node)
    called = type(call.module).__name__ if call.module is not None else _called(node)
    reading.add(Op(call.name, f"torch::{called}", inputs, outputs), node)
    target = written(reading.gm, node)
    if target is not None and isinstance(reading.values.get(target), str) and _makes_none(node):
        reading.values[target] = outputs[0]  # x[...] = y returns nothing: x is what it makes


def _called(node: fx.Node) -> str:
    return function_name(node) or str(getattr(node.target, "__name__", node.target))


def _makes_none(node: fx.Node) -> bool:
    return not node.users and (node.meta.get(META) is None or node.target is operator.setitem)


def _alias(reading: TracedModel, node: fx.Node) -> bool:
    """Element i of a node with several results is that result."""
    if function_name(node) != "getitem" or len(node.args) != 2:
        return False
    source, index = node.args
    values = reading.values.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(values, tuple) or not isinstance(index, int | slice):
        return False
    reading.values[node] = values[index]
    return True


def _constant(reading: TracedModel, node: fx.Node) -> bool:
    """A node that computes with constants alone is one."""
    inputs = node.all_input_nodes
    if node.op == "call_module" or not inputs or function_name(node) not in _COMPUTED:
        return False
    names = [reading.values.get(n) for n in inputs]
    info = node.meta.get(META)
    if not isinstance(info, Info) or written(reading.gm, node) is not None:
        return False
    if not all(isinstance(n, str) and n in reading.constants for n in names):
        return False
    shape = tuple(d for d in info.shape if isinstance(d, int))
    name = reading.bind(node)[0]
    loader = _Evaluation(reading.gm, node)
    reading.constants[name] = Constant(name, loader, shape, info.dtype)
    return True


class _Evaluation:
    """Runs a node whose inputs are constants; the parameters are those of when it was read."""

    def __init__(self, gm: fx.GraphModule, node: fx.Node) -> None:
        self.held: dict[fx.Node, Any] = {}
        self.node = node
        self._collect(gm, node)

    def _collect(self, gm: fx.GraphModule, node: fx.Node) -> None:
        for one in node.all_input_nodes:
            if one.op == "get_attr":
                held: Any = gm
                for part in str(one.target).split("."):
                    held = getattr(held, part)
                self.held[one] = held
            else:
                self._collect(gm, one)

    def __call__(self) -> np.ndarray:
        with torch.no_grad():
            return to_numpy(self._run(self.node))

    def _run(self, node: fx.Node) -> Any:
        if node in self.held:
            return self.held[node]
        args = fx.map_arg(node.args, self._run)
        kwargs = fx.map_arg(node.kwargs, self._run)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _seen_through_memory(reading: TracedModel, node: fx.Node, other: fx.Node) -> None:
    """``other`` shares memory with what ``node`` has written: from here on it is another value."""
    before = reading.values.get(other)
    if not isinstance(before, str):
        return
    name = reading.unique(f"{other.name}@{node.name}")
    if before in reading.infos:
        reading.infos[name] = reading.infos[before]
    inputs = [before, *flatten(reading.values.get(node))]
    op = Op(name, "torch::written through a view", inputs, [name])
    reading.add(op, node, whole=False)
    reading.values[other] = name
