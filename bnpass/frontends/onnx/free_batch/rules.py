"""How the batch travels through each operator: the rules behind :mod:`~.batch`.

A value is untouched by the inputs (``None``), carries the batch on an axis (:class:`Batch`), or is
shape arithmetic that holds the batch size (:class:`BatchedSizes`). A rule says which of these an
output is, or raises :class:`Refusal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import onnx
from onnx import numpy_helper

from bnpass.frontends.onnx.free_batch.shapes import SMALL, Dims
from bnpass.onnx_model.attributes import attribute


class Refusal(Exception):  # noqa: N818 - an answer, caught by the caller
    """Why the batch cannot be followed through a node."""


@dataclass(frozen=True)
class Batch:
    """Axis ``axis`` has N * ``factor`` entries, those of one sample side by side."""

    axis: int
    factor: int = 1


@dataclass(frozen=True)
class Times:
    """The number N * ``factor`` in shape arithmetic."""

    factor: int


@dataclass(frozen=True)
class BatchedSizes:
    """A vector (or scalar) of shape arithmetic; None for an entry that is not known."""

    entries: tuple[int | Times | None, ...]
    scalar: bool = False


State = Batch | BatchedSizes | None


@dataclass(frozen=True)
class Repeat:
    """A constant that every sample gets: along ``axis``, as often as input ``like`` has samples."""

    axis: int
    rank: int
    like: int


@dataclass
class View:
    """One node with what is known about its inputs."""

    node: onnx.NodeProto
    opset: int
    size: int
    states: Mapping[str, State]
    shapes: Mapping[str, Dims]
    constants: Mapping[str, onnx.TensorProto]
    replaced: dict[int, list[int] | list[float]] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    repeated: dict[int, Repeat] = field(default_factory=dict)
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(self.node.input)

    def refuse(self, reason: str) -> NoReturn:
        """Give up at this node."""
        raise Refusal(reason)

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.names) and bool(self.names[index])

    def state(self, index: int) -> State:
        """The state of an input."""
        return self.states.get(self.names[index]) if self.has(index) else None

    def batch(self, index: int = 0) -> Batch:
        """The batch of an input that must have one."""
        state = self.state(index)
        if not isinstance(state, Batch):
            self.refuse(f"input {index} has no batch axis while another has")
        return state

    def dims(self, index: int) -> Dims:
        """The dimensions of an input."""
        dims = self.shapes.get(self.names[index])
        if dims is None:
            self.refuse(f"the rank of {self.node.input[index]!r} is unknown")
        return dims

    def out_dims(self, index: int = 0) -> Dims:
        """The dimensions of an output."""
        dims = self.shapes.get(self.node.output[index])
        if dims is None:
            self.refuse(f"the rank of {self.node.output[index]!r} is unknown")
        return dims

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return attribute(self.node, name, default)

    def ints(self, index: int) -> list[int] | None:
        """A small integer constant; None if the input is computed."""
        tensor = self.constants.get(self.node.input[index]) if self.has(index) else None
        if self.state(index) is not None:  # folded from the size that is about to become free
            return None
        if tensor is None or len(tensor.dims) > 1 or max(tensor.dims, default=1) > SMALL:
            return None
        values: list[int] = numpy_helper.to_array(tensor).reshape(-1).tolist()
        return values

    def known_ints(self, index: int, what: str) -> list[int]:
        """A small integer constant that must be known."""
        values = self.ints(index)
        if values is None:
            self.refuse(f"{what} is computed")
        return values

    def attr_or_ints(self, name: str, index: int) -> list[int] | None:
        """What newer opsets give as an input and older ones as an attribute; None if left out."""
        value = self.attr(name)
        if value is not None:
            return list(value)
        return self.known_ints(index, name) if self.has(index) else None


Rule = Callable[[View], Sequence[State]]
RULES: dict[str, Rule] = {}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, function))
        return function

    return add
