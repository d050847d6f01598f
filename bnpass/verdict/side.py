"""One graph of one of the two models that a verdict compares: who makes what, and the constants."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import onnx

from bnpass.onnx_model import shapes
from bnpass.onnx_model.attributes import is_onnx, node_name
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import Place, captured_by, has_bodies, placed_bodies

Array = np.ndarray[Any, Any]

_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
                     "Multinomial", "Bernoulli"})  # fmt: skip


def sides_of(model: OnnxModel) -> dict[Place, Side]:
    """Every graph of a model by its place: the main one and all bodies inside of it."""
    found: dict[Place, Side] = {}
    _collect(model, model.proto.graph, (), None, found)
    return found


def _collect(
    model: OnnxModel, graph: onnx.GraphProto, place: Place, outer: Side | None,
    found: dict[Place, Side],
) -> None:
    side = found[place] = Side(model, graph, place, outer)
    for node in graph.node:
        for at, body in placed_bodies(node, place):
            _collect(model, body, at, side, found)


class Side:
    """A graph: its nodes by what they make, and what is constant in it.

    Attributes:
        whole: the model that it is of.
        graph: the main graph or a body.
        place: where it is in the model.
        outer: the graph around a body.
    """

    def __init__(
        self, whole: OnnxModel, graph: onnx.GraphProto, place: Place, outer: Side | None
    ) -> None:
        self.whole, self.graph, self.place, self.outer = whole, graph, place, outer
        self.tensors = {t.name: t for t in graph.initializer}
        self.inputs = [i.name for i in graph.input if i.name not in self.tensors]
        self.outputs = [o.name for o in graph.output]
        self._read_by: dict[int, list[str]] = {}
        self.producers: dict[str, int] = {}
        for index, node in enumerate(graph.node):
            for name in node.output:
                if name:
                    self.producers[name] = index
        self._own = set(self.inputs) | self.producers.keys() | self.tensors.keys()

    @property
    def path(self) -> str:
        """The way to a body, as reports name it; empty for the main graph."""
        return "".join(f"{first}/" for first, _, _ in self.place)

    def reads(self, node: onnx.NodeProto) -> list[str]:
        """The names that a node reads, those inside its bodies included."""
        names = [name for name in node.input if name]
        return [*names, *sorted(captured_by(node))] if has_bodies(node) else names

    def read_by(self, index: int) -> list[str]:
        """The values that a node reads and that are no initializers, by its number."""
        found = self._read_by.get(index)
        if found is None:
            reads = self.reads(self.graph.node[index])
            found = self._read_by[index] = [n for n in reads if not self.is_tensor(n)]
        return found

    @cached_property
    def constants(self) -> set[str]:
        """Values of the graph that are made of constants alone."""
        found: set[str] = set()
        for node in self.graph.node:
            if node.op_type in _RANDOM and is_onnx(node):
                continue
            if all(name in found or self.is_tensor(name) for name in self.reads(node)):
                found.update(filter(None, node.output))
        return found

    def is_tensor(self, name: str) -> bool:
        """Whether a name is an initializer, of this graph or one around it."""
        if name in self._own or self.outer is None:
            return name in self.tensors
        return self.outer.is_tensor(name)

    def is_constant(self, name: str) -> bool:
        """Whether a value does not depend on any input."""
        if name in self._own:
            return name in self.tensors or name in self.constants
        return self.outer is not None and self.outer.is_constant(name)

    def tensor(self, name: str) -> onnx.TensorProto | None:
        """The initializer of that name."""
        if name in self._own or self.outer is None:
            return self.tensors.get(name)
        return self.outer.tensor(name)

    def free(self, name: str) -> bool:
        """Whether a value comes from outside of the graph: an input, or one of a graph around."""
        return name not in self.producers and not self.is_constant(name)

    def constant_node(self, name: str) -> onnx.NodeProto | None:
        """The node of a graph around this one that makes a constant which is read here."""
        if name in self._own or self.outer is None:
            index = self.producers.get(name)
            return None if index is None else self.graph.node[index]
        return self.outer.constant_node(name)

    def shape(self, name: str) -> tuple[int | str | None, ...] | None:
        """A value's dimensions, as far as they are known; None where not even the rank is."""
        kind = self.whole.known(self.place)().types.get(name)
        if kind is None and name not in self._own and self.outer is not None:
            return self.outer.shape(name)
        return shapes.dims(kind)

    def element(self, name: str) -> int:
        """A value's ONNX element type; 0 where it is not known."""
        kind = self.whole.known(self.place)().types.get(name)
        if kind is None and name not in self._own and self.outer is not None:
            return self.outer.element(name)
        return 0 if kind is None else int(kind.elem_type)

    def names(self, indices: list[int]) -> list[str]:
        """The names of nodes, with the way to them."""
        return [self.path + node_name(self.graph.node[i]) for i in indices]
