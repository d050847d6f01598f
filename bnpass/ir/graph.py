"""The neutral view: a network as operators and values, with neither onnx nor torch in it.

A frontend (``bnpass.frontends.onnx``, ``bnpass.frontends.fx``) builds a :class:`Graph` from its own
model and later applies the edits that a pass has planned. The vocabulary is ONNX's operators in
their newest meaning: a frontend turns attributes that became inputs into inputs, resolves
``auto_pad``, and writes ``F.linear`` as ``Gemm``. Passes and rules see nothing but this file.

The operators live in a :class:`networkx.DiGraph` (:attr:`Graph.nx`, one node an operator name), for
what networkx is good at: topological order, reachability, dominators and drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import networkx as nx

Dim = int | str | None
"""A dimension: its size, the name of a symbol (equal names are equal sizes), or unknown."""


@dataclass(eq=False, slots=True)
class Op:
    """One operator.

    Attributes:
        name: unique in its graph; the name that people see in reports.
        kind: the ONNX operator (``Conv``), or ``domain::type`` outside of ONNX's own domain.
        inputs: value names in the operator's order; ``""`` for an optional input left out.
        outputs: value names; ``""`` for an optional output left out.
        attrs: attributes with ONNX's defaults left out, ``auto_pad`` resolved into ``pads``
            (``pads`` is ``None`` where the padding depends on an unknown size).
        captured: values of this graph that a nested body (If, Loop, Scan) of the operator reads.
    """

    name: str
    kind: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    captured: tuple[str, ...] = ()

    def input(self, index: int) -> str:
        """The name of input ``index``, or ``""`` when it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def __repr__(self) -> str:
        return f"{self.kind}({self.name!r})"


class Constant:
    """A value that is the same in every run; its data is read only when asked for.

    Args:
        name: the value's name.
        load: returns the data.
        shape: its static shape; left out, it is found by loading.
        dtype: numpy's name of the element type (``float32``, ``bfloat16``, ``int64``); the same.
    """

    __slots__ = ("_dtype", "_load", "_shape", "_small", "name")

    def __init__(
        self,
        name: str,
        load: Callable[[], np.ndarray],
        shape: tuple[int, ...] | None = None,
        dtype: str | None = None,
    ) -> None:
        self.name = name
        self._load = load
        self._shape = shape
        self._dtype = dtype
        self._small: np.ndarray | None = None

    def load(self) -> np.ndarray:
        """The data, read afresh."""
        return self._load()

    @property
    def shape(self) -> tuple[int, ...]:
        """The static shape."""
        return self.small.shape if self._shape is None else self._shape

    @property
    def dtype(self) -> str:
        """numpy's name of the element type."""
        return self.small.dtype.name if self._dtype is None else self._dtype

    @property
    def small(self) -> np.ndarray:
        """The data, kept: for shapes, axes and per-channel vectors, not for weights."""
        if self._small is None:
            self._small = self.load()
        return self._small

    def float64(self) -> np.ndarray:
        """The data in float64: a copy in C order, which may be changed."""
        return np.asarray(self.load()).astype(np.float64, order="C")

    def pieces(self, count: int) -> Iterator[np.ndarray]:
        """The data flat, ``count`` entries at a time; a piece lives until the next one."""
        flat = np.ascontiguousarray(self.load()).reshape(-1)
        for start in range(0, flat.size, count):
            yield flat[start : start + count]

    @property
    def raw(self) -> bytes | None:
        """The data as bytes, little-endian, where it lies ready like that; or None."""
        return None


def stacked(constants: Sequence[Constant]) -> np.ndarray:
    """The data of constants of one shape and type, (n, *shape): a copy in float64."""
    if len(constants) == 1:
        return constants[0].float64()[np.newaxis]
    first, raws = constants[0], [c.raw or b"" for c in constants]
    dtype = np.dtype(first.dtype).newbyteorder("<")
    if {len(raw) for raw in raws} != {math.prod(first.shape) * dtype.itemsize}:
        return np.stack([np.asarray(c.load()) for c in constants]).astype(np.float64)
    flat = np.frombuffer(b"".join(raws), dtype)
    return flat.astype(np.float64).reshape(len(raws), *first.shape)


class Use(NamedTuple):
    """One reading of a value: input ``index`` of ``op`` (-1: from inside a nested body of it)."""

    op: Op
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class Graph:
    """Operators in topological order, with producers, uses, shapes and constants of all values.

    Args:
        ops: operators; every input is a graph input, a constant, or an output of some operator.
        inputs: names of the graph's inputs (constants and overridable defaults not among them).
        outputs: names of the graph's outputs.
        constants: values that are the same in every run, by name.
        shape: the shape of a value, or None while its rank is unknown; asked on demand.
        dtype: numpy's name of a value's element type, or None; asked on demand.
        pinned: why a value that looks constant is none (``overridable graph input``), by name.

    Attributes:
        ops: operators by name.
        ops_in_order: operators, every one behind those whose outputs it reads.
        order: each operator's place in ``ops_in_order``, by name.
    """

    def __init__(
        self,
        ops: Iterable[Op],
        inputs: Iterable[str],
        outputs: Iterable[str],
        constants: dict[str, Constant],
        shape: Callable[[str], tuple[Dim, ...] | None],
        dtype: Callable[[str], str | None],
        pinned: dict[str, str] | None = None,
    ) -> None:
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.constants = constants
        self.pinned = pinned or {}
        self.shape = shape
        self.dtype = dtype
        self._output_set = set(self.outputs)
        self.ops: dict[str, Op] = {}
        self._producer: dict[str, Op] = {}
        self._uses: dict[str, list[Use]] = {}
        in_order = True
        for op in ops:
            in_order = self._add(op) and in_order
        self.ops_in_order = list(self.ops.values()) if in_order else self._sorted()
        self.order = {op.name: position for position, op in enumerate(self.ops_in_order)}

    def _add(self, op: Op) -> bool:
        """Note an operator; False when one before it reads what it makes."""
        if op.name in self.ops:
            raise ValueError(f"two operators are named {op.name!r}")
        self.ops[op.name] = op
        uses, constants, ordered = self._uses, self.constants, True
        for index, name in enumerate(op.inputs):
            if name in constants:
                continue
            if name in uses:
                uses[name].append(Use(op, index))
            elif name:
                uses[name] = [Use(op, index)]
        for name in op.captured:
            if name not in constants:
                uses.setdefault(name, []).append(Use(op, -1))
        for name in op.outputs:
            if name and name not in constants:
                self._producer[name] = op
                ordered = ordered and name not in uses
        return ordered

    def _sorted(self) -> list[Op]:
        """The operators in topological order, where they did not come in one as ONNX asks for."""
        import networkx as nx

        return [self.ops[n] for n in nx.topological_sort(self.nx)]

    @cached_property
    def nx(self) -> nx.DiGraph:
        """The operators as a directed graph: an edge for every value that one hands to another."""
        import networkx as nx

        graph = nx.DiGraph()
        graph.add_nodes_from(self.ops)
        for value, uses in self._uses.items():
            producer = self._producer.get(value)
            if producer is not None:
                graph.add_edges_from((producer.name, use.op.name) for use in uses)
        return graph

    def producer(self, value: str) -> Op | None:
        """The operator that computes a value; None for graph inputs and constants."""
        return self._producer.get(value)

    def uses(self, value: str) -> list[Use]:
        """Every reading of a value by an operator, nested bodies included."""
        found = self._uses.get(value)
        if found is None:
            found = self._constant_uses.get(value, []) if value in self.constants else []
        return found

    @cached_property
    def _constant_uses(self) -> dict[str, list[Use]]:
        """Readings of constants, which are most readings and are seldom asked for."""
        found: dict[str, list[Use]] = {}
        for op in self.ops.values():
            reads = [(name, i) for i, name in enumerate(op.inputs)]
            for name, index in (*reads, *((name, -1) for name in op.captured)):
                if name in self.constants:
                    found.setdefault(name, []).append(Use(op, index))
        return found

    def is_output(self, value: str) -> bool:
        """Whether the value is one of the graph's outputs."""
        return value in self._output_set

    def constant(self, value: str) -> Constant | None:
        """The constant of that name, or None when the value is computed or may be overridden."""
        return self.constants.get(value)
