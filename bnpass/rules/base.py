"""What a rule is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Constant, Dim, Op


class MapRefusedError(Exception):
    """A map may not cross here; the reason names the operator that stopped it."""

    def __init__(self, reason: str, op: Op | None = None) -> None:
        super().__init__(f"{op.kind} {op.name!r}: {reason}" if op is not None else reason)

    @property
    def reason(self) -> str:
        """One line for people."""
        return str(self.args[0])


class RuleContext(Protocol):
    """What a rule may ask of the graph around an operator."""

    def shape(self, value: str) -> tuple[Dim, ...]:
        """The dimensions of a value; MapRefusedError when not even its rank is known."""

    def rank(self, value: str) -> int:
        """The number of dimensions of a value; MapRefusedError when it is not known."""

    def constant(self, value: str) -> Constant | None:
        """The constant of that name, or None."""

    def current(self, op: Op, index: int) -> np.ndarray:
        """A constant input in float64 (0 if left out), the maps that it has taken in applied."""

    def pinned(self, value: str, otherwise: str = "no constant") -> str:
        """Why a value that looks like a constant is none."""

    def shifted(self, op: Op) -> bool:
        """Whether an operator's own weights have taken a shift in: it adds something by then."""

    def paths(self, value: str) -> int:
        """In how many ways sums lead to a value: how often a shared term counts in it."""

    def producer(self, value: str) -> Op | None:
        """The operator that computes a value; None for inputs and constants."""

    def unread(self, value: str) -> bool:
        """Whether nothing reads a value."""


@dataclass(slots=True)
class Step:
    """How a map crosses one operator, or ends in it.

    Attributes:
        asks: backward: the map that each input must carry instead (an identity says: unchanged).
            NaN entries say that nobody reads those entries through this operator.
        gives: forward: the map that each output then carries; outputs not named carry none.
        input_map, output_map: the map that the operator's own weights take in.
        constants: maps for single constant inputs, by index.
        adds: operators that this step costs (the Add behind a MatMul).
        elsewhere: maps for constant inputs of other operators: (operator, input index, map).
        others: maps on the outputs of other operators, which their weights take in.
        inside: the map that values between those operators carry then; None: other numbers.
    """

    asks: dict[int, Map] = field(default_factory=dict)
    gives: dict[int, Map] = field(default_factory=dict)
    input_map: Map | None = None
    output_map: Map | None = None
    constants: dict[int, Map] = field(default_factory=dict)
    adds: int = 0
    elsewhere: list[tuple[Op, int, Map]] = field(default_factory=list)
    others: list[tuple[Op, Map]] = field(default_factory=list)
    inside: dict[str, Map | None] = field(default_factory=dict)


Backward = Callable[[Op, Sequence[Map | None], RuleContext], list[Step]]
"""(operator, the map asked of each output, context) -> alternatives, best first; may refuse."""

Forward = Callable[[Op, dict[int, Map], RuleContext], list[Step]]
"""(operator, the maps that its inputs carry, context) -> alternatives, best first; may refuse."""


@dataclass(frozen=True)
class Rule:
    """One row of the table: how a map crosses an operator in either direction."""

    backward: Backward
    forward: Forward


def only(asks: Sequence[Map | None]) -> Map:
    """The map asked of an operator's first and only output that matters."""
    found = asks[0]
    if found is None:  # a second output (a mask, indices) is the one that was asked for
        raise MapRefusedError("only its first output can carry a map")
    return found


def data_only(op: Op, carried: dict[int, Map], index: int = 0) -> Map:
    """The map carried by the data input; MapRefusedError when another input carries one too."""
    if set(carried) != {index}:
        raise MapRefusedError("the map arrives on an input that is not its data", op)
    return carried[index]


def size(dim: Dim, op: Op, what: str) -> int:
    """A dimension that has to be known."""
    if not isinstance(dim, int):
        raise MapRefusedError(f"the size of {what} is not known", op)
    return dim


def refuse_backward(reason: str) -> Backward:
    """A row's side that takes nothing."""

    def rule(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
        raise MapRefusedError(reason, op)

    return rule


def refuse_forward(reason: str) -> Forward:
    """A row's side that takes nothing."""

    def rule(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
        raise MapRefusedError(reason, op)

    return rule
