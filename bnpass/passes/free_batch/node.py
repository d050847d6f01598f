"""One operator as the rules of the free batch see it.

A value carries the batch on an axis (:class:`Batch`) or does not. Numbers of shape arithmetic hold
the batch size where the symbol :data:`BATCH` is in them. A rule says where the outputs of an
operator carry the batch, or raises :class:`Refusal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from bnpass.ir.arithmetic import LARGEST, Numbers, is_settled, numbers
from bnpass.ir.extents import Extent, Product
from bnpass.ir.graph import Dim, Graph, Op

BATCH = "\0batch"
"""The batch size among sizes: no file can hold a dimension of that name."""

Use = tuple[str, int]
"""One input of one operator: (its first output, the index of the input)."""


class Refusal(Exception):  # noqa: N818 - an answer, caught by the caller
    """Why the batch cannot be followed through an operator."""


@dataclass(frozen=True)
class Batch:
    """Axis ``axis`` has N * ``factor`` entries, those of one sample side by side."""

    axis: int
    factor: int = 1

    @property
    def size(self) -> Product:
        """How many entries the axis has."""
        return Product(self.factor, (BATCH,))


State = Batch | None
"""None: the value is the same for every batch size."""


@dataclass(frozen=True)
class Repeat:
    """A constant that every sample gets: along ``axis``, as often as input ``like`` has samples."""

    axis: int
    rank: int
    like: int


def holds_batch(entry: object) -> bool:
    """Whether a number of shape arithmetic depends on the batch size."""
    return isinstance(entry, Product) and BATCH in entry.symbols


@dataclass(eq=False)
class BatchNode:
    """One operator with what is known of its inputs.

    Attributes:
        op: the operator.
        graph: that it is in.
        size: the batch size that becomes free.
        states: where values carry the batch, by name; a value that is not here does not.
        numbers: those of shape arithmetic, by name.
        replaced: the numbers that an input has to become, by index.
        dropped: optional inputs that go.
        repeated: constants of one sample that every sample gets.
    """

    op: Op
    graph: Graph
    size: int
    states: Mapping[str, State]
    numbers: Mapping[str, Numbers]
    replaced: dict[int, list[int] | list[float]] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    repeated: dict[int, Repeat] = field(default_factory=dict)

    def refuse(self, reason: str) -> NoReturn:
        """Give up at this operator."""
        raise Refusal(reason)

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return bool(self.op.input(index))

    @property
    def given(self) -> list[int]:
        """The inputs that are given."""
        return [i for i, name in enumerate(self.op.inputs) if name]

    def state(self, index: int) -> State:
        """Where an input carries the batch."""
        return self.states.get(self.op.input(index))

    def batch(self, index: int = 0) -> Batch:
        """Of an input that must carry it."""
        state = self.state(index)
        if state is None:
            self.refuse(f"input {index} has no batch axis while another has")
        return state

    def dims(self, index: int) -> tuple[Dim, ...]:
        """The dimensions of an input."""
        return self._dims(self.op.inputs[index])

    def out_dims(self, index: int = 0) -> tuple[Dim, ...]:
        """The dimensions of an output."""
        return self._dims(self.op.outputs[index])

    def _dims(self, name: str) -> tuple[Dim, ...]:
        dims = self.graph.shape(name)
        if dims is None:
            self.refuse(f"the rank of {name!r} is unknown")
        return dims

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.op.attrs.get(name, default)

    # --- numbers

    def known(self, index: int) -> Numbers | None:
        """The numbers of an input as far as they are known: shape arithmetic, a small constant."""
        name = self.op.input(index)
        found = self.numbers.get(name)
        constant = self.graph.constant(name)
        if found is not None or constant is None:
            return found
        size, kind = _count(constant.shape), constant.dtype
        whole = size <= LARGEST and kind.startswith(("int", "bool"))
        if not whole and not (size == 1 and kind.startswith("float")):
            return None
        return numbers(constant.small)

    def depends(self, index: int) -> bool:
        """Whether an input is shape arithmetic that holds the batch size."""
        found = self.numbers.get(self.op.input(index))
        return found is not None and any(map(holds_batch, found.flat))

    def ints(self, index: int) -> list[int] | None:
        """The whole numbers of an input; None where they are not the same in every run."""
        found = self.known(index)
        if found is None or found.ndim > 1 or not is_settled(found):
            return None
        return [int(v) for v in found.flat]

    def known_ints(self, index: int, what: str) -> list[int]:
        """Whole numbers that must be the same in every run."""
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

    def sizes(self, index: int) -> list[Extent]:
        """The entries of an input that holds sizes, as far as they are known."""
        found = self.known(index)
        if found is not None:
            return list(found.flat)
        dims = self.dims(index)
        count = dims[0] if dims else 1
        if not isinstance(count, int):
            self.refuse(f"the length of {self.op.inputs[index]!r} is unknown")
        return [None] * count


def _count(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


BatchRule = Callable[[BatchNode], Sequence[State]]
RULES: dict[str, BatchRule] = {}
"""By operator: this is the table of how the batch travels, one row an operator."""


def rule(*kinds: str) -> Callable[[BatchRule], BatchRule]:
    """Enter a rule into the table."""

    def add(function: BatchRule) -> BatchRule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return add
