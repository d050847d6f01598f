"""One call of an operator, and the table of all operators that the evaluator knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnpass.errors import UnsupportedError

Array = np.ndarray[Any, Any]
Outputs = Sequence[Array | None]


class UnknownOperatorError(UnsupportedError):
    """The evaluator does not know an operator, or not in this form."""


@dataclass
class Invocation:
    """An operator with the numbers that it is applied to.

    Attributes:
        kind: operator type.
        attrs: its attributes as Python values; tensors as arrays, graphs as GraphProtos.
        inputs: arrays; None for an input that is left out.
        wanted: for each output whether anything reads it.
        opset: the version of ONNX's own operators.
        body: runs a nested graph: (graph, its inputs) -> its outputs.
        name: of the node, for messages.
    """

    kind: str
    attrs: dict[str, Any]
    inputs: list[Array | None]
    wanted: list[bool]
    opset: int = 17
    body: Callable[[Any, Sequence[Array]], list[Array]] | None = None
    name: str = ""

    def __getitem__(self, index: int) -> Array:
        """An input that has to be there."""
        found = self.get(index)
        if found is None:
            raise UnknownOperatorError(f"{self.kind} {self.name!r} has no input {index}")
        return found

    def get(self, index: int) -> Array | None:
        """An input, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def ints(self, index: int, attribute: str = "") -> list[int] | None:
        """Numbers from an input, or from the attribute that they were in older opsets."""
        found = self.get(index)
        if found is not None:
            return [int(v) for v in found.reshape(-1)]
        given = self.attrs.get(attribute) if attribute else None
        return None if given is None else [int(v) for v in given]

    def refuse(self, why: str) -> UnknownOperatorError:
        """An error that says which form is not known."""
        return UnknownOperatorError(f"{self.kind} {self.name!r}: {why} is not known here")


Function = Callable[[Invocation], Outputs]

TABLE: dict[str, Function] = {}
"""Every operator by its type; others than ONNX's own as ``domain::type``."""


def operator(*kinds: str) -> Callable[[Function], Function]:
    """Enter a function into the table under these types."""

    def enter(function: Function) -> Function:
        TABLE.update(dict.fromkeys(kinds, function))
        return function

    return enter


def known(kind: str) -> bool:
    """Whether the evaluator knows an operator type."""
    return kind in TABLE


def one(function: Callable[[Invocation], Any]) -> Function:
    """An operator with a single output from a function that returns one array."""
    return lambda call: (np.asarray(function(call)),)
