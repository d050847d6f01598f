"""Operators that write into their input: made explicit before the graph is read.

1. ``x.relu_()`` returns x itself: whoever reads x later reads the result instead, by renaming.
2. Where x is a view of something (or something is a view of x) that is read later, that reader
   sees the write too: such values are noted, and no map passes them.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from bnpass.frontends.fx.targets import function_name

_OPERATORS = frozenset(
    {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
     operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor, operator.imatmul,
     operator.setitem}
)  # fmt: skip

VIEWS = frozenset(
    {"view", "reshape", "flatten", "transpose", "permute", "t", "T", "mT", "squeeze", "unsqueeze",
     "expand", "expand_as", "view_as", "getitem", "chunk", "split", "tensor_split", "unbind",
     "narrow", "select", "slice", "detach", "contiguous", "identity", "dropout", "to", "float",
     "type_as", "swapaxes", "swapdims", "movedim", "moveaxis", "unflatten", "alias", "getattr",
     "split_with_sizes", "ravel", "double", "half", "bfloat16", "type", "reshape_as", "unfold",
     "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "real", "requires_grad_",
     "_unsafe_view", "as_strided", "diagonal"}
)  # fmt: skip
"""Functions that may return (a view of) their first argument."""

_VIEW_MODULES = ("Identity", "Flatten", "Unflatten", "Dropout", "AlphaDropout")


def written(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The node whose value a node writes into; None for most."""
    if not _writes(gm, node):
        return None
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return first if isinstance(first, fx.Node) else None


def _writes(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(gm.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if node.op != "call_function":
        return False
    if node.target in _OPERATORS or node.kwargs.get("inplace") is True:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return bool(schema.arguments and schema.arguments[0].is_write)
    name = getattr(node.target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or _positional_inplace(node)


def _positional_inplace(node: fx.Node) -> bool:
    """``F.relu(x, True)``: the flag given by position."""
    import inspect

    module = getattr(node.target, "__module__", "") or ""
    if module != "torch.nn.functional" or not callable(node.target):
        return False
    try:
        bound: Any = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return False
    return bound.arguments.get("inplace") is True


def rename(gm: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Let later readers of a written value read the result; return who else sees each write.

    Returns:
        For a writing node, the other nodes whose values share memory with what it writes and that
        are read afterwards.
    """
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    writers = [(n, a) for n in gm.graph.nodes if (a := written(gm, n)) is not None]
    if not writers:
        return {}
    for node, target in writers:
        if node.target is operator.setitem or node.target == "__setitem__":
            continue
        target.replace_all_uses_with(node, lambda user, n=node: order[user] > order[n])  # type: ignore[misc]
    groups = _groups(gm)
    seen: dict[fx.Node, list[fx.Node]] = {}
    for node, target in writers:
        sharing = [
            m for m in groups[target]
            if m is not node and order[m] < order[node]
            and any(order[u] > order[node] for u in m.users)
        ]  # fmt: skip
        if sharing:
            seen[node] = sharing
    return seen


def _groups(gm: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Nodes whose values may share memory, by node."""
    group: dict[fx.Node, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        base = _base(gm, node)
        group[node] = group[base] if base is not None else []
        group[node].append(node)
    return group


def _base(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return None
    if _writes(gm, node) or function_name(node) in VIEWS:
        return first
    if node.op == "call_module":
        name = type(gm.get_submodule(str(node.target))).__name__
        return first if name.startswith(_VIEW_MODULES) else None
    return None


class Memory:
    """Which values of a graph share memory, and where it is written; kept up as nodes go."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._order = {node: i for i, node in enumerate(gm.graph.nodes)}
        self._root: dict[fx.Node, fx.Node] = {}
        for nodes in _groups(gm).values():
            self._root.update(dict.fromkeys(nodes, nodes[0]))
        self._last: dict[fx.Node, int] = {}  # root -> place of the last write
        for node in gm.graph.nodes:
            target = written(gm, node)
            if target is not None:
                self._last[self._find(target)] = self._order[node]

    def _find(self, node: fx.Node) -> fx.Node:
        while (up := self._root.get(node, node)) is not node:
            self._root[node] = self._root.get(up, up)
            node = up
        return node

    def is_written(self, node: fx.Node) -> bool:
        """Whether something writes into the value of a node, or into a view of it."""
        return self._find(node) in self._last

    def is_written_behind(self, source: fx.Node, node: fx.Node) -> bool:
        """Whether something behind ``node`` writes into the value of ``source``."""
        return self._last.get(self._find(source), -1) > self._order.get(node, -1)

    def join(self, source: fx.Node, node: fx.Node) -> None:
        """``source`` takes the place of ``node``."""
        a, b = self._find(source), self._find(node)
        if a is not b:
            self._root[b] = a
            last = max(self._last.get(a, -1), self._last.pop(b, -1))
            if last >= 0:
                self._last[a] = last
