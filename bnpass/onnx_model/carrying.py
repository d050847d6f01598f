"""onnx's shape inference; numbers are followed through shape arithmetic only where few they are.

With ``data_prop`` inference carries the entries of every vector that may be a shape along. A chain
in which each Concat joins the one before to itself doubles them: sixty nodes fill any memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from bnpass.onnx_model.attributes import attribute
from bnpass.onnx_model.scopes import bodies, nodes_within

_ENTRIES = 1 << 20
"""Entries that may be carried along in a model, all values together."""


def infer_shapes(model: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """The model with the types of its values.

    Args:
        model: without large weights: it is serialised.
        strict: raise where inference finds a fault.
    """
    return onnx.shape_inference.infer_shapes(
        model, data_prop=_carries_little(model), strict_mode=strict
    )


def _carries_little(model: onnx.ModelProto) -> bool:
    """Whether the vectors that inference would carry along stay short.

    It makes an entry for every number of a vector, of which it may know nothing but the length.
    """
    everywhere = [*nodes_within(model.graph.node),
                  *(node for f in model.functions for node in nodes_within(f.node))]
    if not any(node.op_type == "Concat" and attribute(node, "axis", 0) in (0, -1)
               for node in everywhere):
        return True
    growth = _Growth({(f.domain, f.name): f for f in model.functions})
    growth.walk(model.graph.node, dict(_vectors(model)))
    return growth.total <= _ENTRIES


def _vectors(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """Values of one axis, and their lengths, as far as they are known without carrying."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    for info in (*graph.input, *graph.value_info, *graph.output):
        dims = info.type.tensor_type.shape.dim
        if len(dims) == 1:
            yield info.name, max(1, dims[0].dim_value)
    for tensor in graph.initializer:
        if len(tensor.dims) == 1:
            yield tensor.name, max(1, tensor.dims[0])


class _Growth:
    """How many entries nodes make of those that they read; never fewer than inference carries."""

    def __init__(self, functions: dict[tuple[str, str], onnx.FunctionProto]) -> None:
        self._functions = functions
        self._factors: dict[tuple[str, str], int] = {}
        self.total = 0

    def walk(self, nodes: Iterable[onnx.NodeProto], known: dict[str, int]) -> int:
        """Follow the nodes in their order; returns the largest count."""
        largest = 1
        for node in nodes:
            counts = [known.get(name, 1) for name in node.input]
            count = sum(counts) if node.op_type == "Concat" else max(counts, default=1)
            count = min(count * self._factor((node.domain, node.op_type)), _ENTRIES + 1)
            for body in bodies(node):
                count = max(count, self.walk(body.node, known))
            for name in node.output:
                count = max(count, known.get(name, 1))
                known[name] = count
            self.total += count if count > 1 else 0
            largest = max(largest, count)
        return largest

    def _factor(self, name: tuple[str, str]) -> int:
        """By how much a function's results may be longer than its arguments."""
        if name not in self._functions:
            return 1
        if name not in self._factors:
            self._factors[name] = self.walk(self._functions[name].node, {})
        return self._factors[name]
