"""What a pass wants changed, said without onnx or torch: the words between passes and frontends.

A pass plans; a frontend applies. All edits of one plan refer to the graph as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.correspondence import Correspondences
from bnpass.ir.graph import Op


@dataclass(slots=True)
class Rewrite:
    """The constants of one operator take maps in: it computes ``output_map(op(input_map(x)))``.

    Attributes:
        op: the operator.
        input_map: a map applied to its data input (a forward fold ends here), or None.
        output_map: a map applied to its output (a backward fold ends here), or None.
        constants: maps applied to single constant inputs, by input index.
        sources: names of the folded operators whose maps are in here.
    """

    op: Op
    input_map: Map | None = None
    output_map: Map | None = None
    constants: dict[int, Map] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    def add_output_map(self, m: Map, sources: tuple[str, ...] = ()) -> Rewrite:
        """The same rewrite, followed by one more map on the output, on behalf of ``sources``."""
        after = m if self.output_map is None else m.after(self.output_map)
        return Rewrite(self.op, self.input_map, after, self.constants, self._joined(sources))

    def add_input_map(self, m: Map, sources: tuple[str, ...] = ()) -> Rewrite:
        """The same rewrite, preceded by one more map on the data input."""
        before = m if self.input_map is None else self.input_map.after(m)
        return Rewrite(self.op, before, self.output_map, self.constants, self._joined(sources))

    def add_constant(self, index: int, m: Map, sources: tuple[str, ...] = ()) -> Rewrite:
        """The same rewrite, one more map applied to a constant input."""
        old = self.constants.get(index)
        constants = {**self.constants, index: m if old is None else m.after(old)}
        return Rewrite(self.op, self.input_map, self.output_map, constants, self._joined(sources))

    def _joined(self, sources: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.sources, *sources))) if self.sources else sources


@dataclass(frozen=True)
class Leftover:
    """A chain of affine operators that could not leave, written as one normalisation.

    Attributes:
        ops: the chain, in order; the last one's output stays.
        map: what the chain computes.
        axis: the channel axis of the value.
        style: ``bn`` (one BatchNormalization) or ``affine`` (a Mul and an Add).
    """

    ops: tuple[Op, ...]
    map: Map
    axis: int
    style: str = "bn"


LEFTOVER_EPSILON = float(np.float32(1e-5))
"""Of a BatchNormalization in place of a chain: torch takes no 0; gamma makes up for it."""


@dataclass(frozen=True, eq=False)
class NewConstant:
    """An operator's input becomes another constant.

    Attributes:
        op: the operator.
        index: the input; one that was left out so far may be named, too.
        make: computes the numbers, in float64; a frontend rounds them once, to the old type.
        name: of the new constant; empty: it takes the old one's place, where nobody else reads it.
    """

    op: Op
    index: int
    make: Callable[[], np.ndarray]
    name: str = ""


@dataclass(frozen=True)
class NewInput:
    """An operator reads another value: one of the graph, or what an added operator makes."""

    op: Op
    index: int
    value: str


@dataclass(frozen=True, eq=False)
class AddedOperator:
    """An operator that was not there before, with one output.

    Attributes:
        op: the operator. Its inputs are values of the graph, or outputs of operators added before;
            its output takes the place of the value of that name, if there is one, for all readers;
            else a frontend may have to give it another name.
        constants: inputs that are new constants, in float64, by index.
        like: a value of the graph whose element type the constants get.
        before: the operator of the graph in front of which it stands.
        names: of new constants, by index; others are named after the operator.
    """

    op: Op
    constants: Mapping[int, np.ndarray]
    like: str
    before: Op
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BiasDrop:
    """A bias that a BatchNorm behind it makes redundant (arXiv:1502.03167, section 3.2).

    Attributes:
        op: the operator that adds it.
        index: the input that holds it.
        whole: True: the operator does nothing else (an Add) and goes with it.
        data: the data input that the operator then passes on, when ``whole``.
    """

    op: Op
    index: int
    whole: bool = False
    data: int = 0


@dataclass(frozen=True)
class Branch:
    """Something linear beside a convolution, with a BatchNorm of its own; both are added up.

    Attributes:
        name: of the new convolution, or of its BatchNorm where there is none.
        root: the value that it reads.
        shape: of the convolution's weight (out, in/group, ...); None: the root alone is it.
        attrs: of the convolution.
    """

    name: str
    root: str
    shape: tuple[int, ...] | None
    attrs: dict[str, Any]


@dataclass(frozen=True)
class NewBranch:
    """A branch with its numbers.

    Attributes:
        branch: what it is.
        weight: float64; None for the root itself.
        scale: float64 (C,): gamma of its BatchNorm, which starts with beta 0, mean 0, variance 1.
    """

    branch: Branch
    weight: np.ndarray | None
    scale: np.ndarray


@dataclass(frozen=True)
class NewNorm:
    """A BatchNorm to insert: it replaces ``value`` for all its readers.

    Attributes:
        name: of the new operator, unique.
        value: the value that it normalises.
        axis: the channel axis of that value, not negative.
        rank: the rank of that value.
        scale, bias, mean, var: float64, shape (C,): gamma, beta and the statistics to start with.
        drops: the biases that go with it.
        readers: operators that read the normalised value; None: all that read ``value``.
        clones: operators, in order, to be duplicated: the copy of the last one makes the value
            that is normalised for ``readers``; the others keep what they read.
        branches: what is added to the normalised value.
    """

    name: str
    value: str
    axis: int
    rank: int
    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    epsilon: float = 1e-5
    momentum: float = 0.1
    drops: tuple[BiasDrop, ...] = ()
    readers: frozenset[str] | None = None
    clones: tuple[Op, ...] = ()
    branches: tuple[NewBranch, ...] = ()


@dataclass(frozen=True)
class Collapse:
    """A region that is linear in one value and becomes one operator.

    Attributes:
        ops: all of its operators, in order; they go.
        carrier: the one among them that stays, with other inputs, attributes and numbers.
        root: the value that the region reads.
        result: the value that it makes: the same numbers under the same name.
        kind: ``Conv``, or ``Gemm`` (W (out, in): transB) for values of two axes, or ``MatMul``.
        weight: float64; of a Conv (out, in/group, ...), of a MatMul (in, out).
        bias: float64 (out,), or None.
        attrs: all attributes of the new operator.
    """

    ops: tuple[Op, ...]
    carrier: Op
    root: str
    result: str
    kind: str
    weight: np.ndarray
    bias: np.ndarray | None
    attrs: dict[str, Any]


@dataclass(frozen=True)
class GraphEdits:
    """Everything that a plan changes in one graph; all of it refers to the graph as it was.

    Attributes:
        rewrites: operators whose constants take maps in.
        removed: operators that go; each passes its data input (index given) on as its output.
        leftovers: chains that become one operator.
        constants: other inputs that become another constant.
        added: operators that come, in order; what only made a value that one of them replaces is
            swept away.
        inputs: operators that read another value.
        norms: BatchNorms that come, with the biases that go with them.
        correspondences: which new value stands for which old one.
    """

    rewrites: tuple[Rewrite, ...] = ()
    removed: tuple[tuple[Op, int], ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    constants: tuple[NewConstant, ...] = ()
    added: tuple[AddedOperator, ...] = ()
    inputs: tuple[NewInput, ...] = ()
    norms: tuple[NewNorm, ...] = ()
    correspondences: Correspondences = field(default_factory=Correspondences)

    @property
    def changed(self) -> frozenset[str]:
        """Values whose numbers differ from the original's, or whose names are gone."""
        return self.correspondences.changed

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        changes = (
            self.rewrites,
            self.removed,
            self.leftovers,
            self.constants,
            self.added,
            self.inputs,
            self.norms,
        )
        return not any(changes)
