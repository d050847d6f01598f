"""A model under construction: values with known shapes, weights that may be shared or hidden."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LIMIT = 3000  # elements of a value: graphs stay small enough to run by the hundred


@dataclass(frozen=True)
class Value:
    """A value: its name and static shape (the batch is 2 where the model says N)."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Builder:
    """Nodes and weights of one random graph; the same draws whatever the type.

    Attributes:
        rng: the only source of randomness.
        dtype: the type of all floating-point values and weights.
        symbolic: the first axis of the inputs is the symbol N.
    """

    rng: np.random.Generator
    dtype: Any = np.float32
    symbolic: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)
    batches: set[str] = field(default_factory=set)

    # --- draws

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Any) -> Any:
        options = list(options)
        return options[int(self.rng.integers(len(options)))]

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    # --- weights

    def fresh(self, prefix: str) -> str:
        return f"{prefix}{len(self.nodes)}_{len(self.weights)}"

    def ints(self, *numbers: int) -> str:
        return self.constant("i", np.array(numbers, np.int64))

    def constant(self, prefix: str, array: np.ndarray) -> str:
        """An initializer, or now and then a Constant node or one behind an Identity."""
        if array.dtype.kind == "f":
            array = array.astype(self.dtype)
        name = self.fresh(prefix)
        if self.chance(0.1):
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.weights[name] = np.ascontiguousarray(array)
        if array.ndim and self.chance(0.05):
            self.nodes.append(helper.make_node("Identity", [name], [f"{name}_same"]))
            return f"{name}_same"
        return name

    def weight(self, *shape: int, fan: int = 1) -> str:
        """Random weights of a shape; now and then those that another operator has already."""
        array = self.rng.normal(size=shape) / np.sqrt(fan)
        twins = [n for n, a in self.weights.items() if a.shape == shape and n[0] in "wkp"]
        if twins and self.chance(0.15):
            return self.pick(twins)
        return self.constant("w", array)

    def scale(self, *shape: int) -> str:
        """Factors of either sign, away from 0."""
        size = self.rng.uniform(0.5, 2.0, shape)
        signs = np.where(self.rng.random(shape) < self.pick([0.0, 0.5]), -1, 1)
        return self.constant("k", size * signs)

    # --- nodes

    def node(self, kind: str, reads: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add an operator; returns the names of its outputs."""
        names = [f"v{len(self.nodes)}_{i}" if i else f"v{len(self.nodes)}" for i in range(outputs)]
        while reads and not reads[-1]:
            reads = reads[:-1]
        self.nodes.append(helper.make_node(kind, reads, names, f"n{len(self.nodes)}", **attributes))
        for name in reads:
            self.readers[name] = self.readers.get(name, 0) + 1
        return names

    def give(self, name: str, shape: tuple[int, ...], batch_of: Value | None = None) -> Value:
        """Make a node's output known; its first axis is the batch where that of ``batch_of`` is."""
        value = Value(name, tuple(int(n) for n in shape))
        self.values.append(value)
        if batch_of is not None and batch_of.name in self.batches:
            self.batches.add(name)
        return value

    def op(
        self, kind: str, value: Value, *more: str, shape: Any = None, **attributes: Any
    ) -> Value:
        """Add an operator on a value that leaves its first axis alone."""
        (name,) = self.node(kind, [value.name, *more], **attributes)
        return self.give(name, value.shape if shape is None else shape, value)

    def input(self, shape: tuple[int, ...]) -> Value:
        value = Value(f"x{len(self.inputs)}", shape)
        self.inputs.append(value)
        self.values.append(value)
        if self.symbolic:
            self.batches.add(value.name)
        return value

    # --- the model

    def model(self) -> onnx.ModelProto:
        """The model: every value that nobody reads is an output, and a few of the others."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        known = {v.name: v for v in self.values}
        unread = [v for v in self.values if not self.readers.get(v.name)]
        extra = [v for v in self.values if self.readers.get(v.name) and self.chance(0.03)]
        outputs = {v.name: v for v in [*unread, *extra]}
        for value in self.inputs:
            outputs.pop(value.name, None)
        graph = helper.make_graph(
            self.nodes,
            "random",
            [self._info(v, kind) for v in self.inputs],
            [self._info(known[name], kind) for name in outputs],
            [numpy_helper.from_array(a, n) for n, a in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _info(self, value: Value, kind: int) -> onnx.ValueInfoProto:
        dims: list[int | str] = list(value.shape)
        if value.name in self.batches and dims:
            dims[0] = "N"
        return helper.make_tensor_value_info(value.name, kind or TensorProto.FLOAT, dims)
