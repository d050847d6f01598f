"""Values of a graph as linear functions of values in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnpass.ir.graph import Constant, Graph, Op
from bnpass.ir.linear import (
    Array,
    Extent,
    Linear,
    NotLinearError,
    Offset,
    added,
    composed,
    identity,
    pointwise,
    stacked,
)
from bnpass.ir.operators import kinds
from bnpass.ir.ranks import rank_of
from bnpass.passes.atoms import Atoms
from bnpass.passes.context import GraphContext
from bnpass.rules import MapRefusedError
from bnpass.rules.elementwise import FLOATS
from bnpass.rules.maps import map_of

# Of the table's layers and joins those that have a linear form here; a Cast rounds.
JOINS = frozenset({"Add", "Sub", "Sum", "Concat"})
LAYERS = frozenset({"Conv", "AveragePool", "MatMul", "Gemm"})
_SAME = kinds(lambda row: row.repeats) - {"Cast"}
AFFINE = kinds(lambda row: row.affine)
LINEAR = JOINS | LAYERS | AFFINE | _SAME
"""Operators that may be linear."""


@dataclass(frozen=True)
class Domain:
    """Where channels lie, and what windows move along.

    Attributes:
        dense: channels are the last axis and there are no windows (MatMul, Gemm); else they are
            axis 1, and windows move along all axes behind it (Conv).
    """

    dense: bool

    def axis(self, rank: int) -> int:
        """Of the channels."""
        return rank - 1 if self.dense else 1

    def windows(self, rank: int) -> int:
        """How many axes windows move along."""
        return 0 if self.dense else rank - 2

    def has(self, op: Op) -> bool:
        """Whether a layer belongs here."""
        return (op.kind in ("MatMul", "Gemm")) == self.dense


class LinearForms:
    """Makes linear functions of single operators, and of regions of them.

    Args:
        graph: the view.
        atoms: operators of composites, which are not taken apart.
        domain: where channels lie.
        numbers: False: leave all numbers out.
    """

    def __init__(self, graph: Graph, atoms: Atoms, domain: Domain, *, numbers: bool) -> None:
        self.graph, self.atoms, self.domain = graph, atoms, domain
        self.context, self.numbers = GraphContext(graph), numbers

    def data(self, op: Op) -> list[str]:
        """The values that an operator is linear in; none where it is not linear.

        Raises:
            NotLinearError: it would be, but for its attributes; says why.
        """
        if op.name in self.atoms:
            return []
        if op.kind in _SAME and not op.attrs.get("training") and len(op.outputs) == 1:
            return op.inputs[:1]
        if op.kind in LAYERS:
            return self._layer_data(op)
        if op.kind == "BatchNormalization":
            return self._norm_data(op)
        if op.kind in AFFINE:
            try:
                found = map_of(op, self.context)
            except MapRefusedError:
                return []
            if found is not None:
                fits = found[1].varies_along(self.domain.axis(found[1].rank))
                return [op.inputs[found[0]]] if fits else []
        return self._joined(op)

    def _norm_data(self, op: Op) -> list[str]:
        """Without its numbers, for there may be thousands."""
        rank = rank_of(self.graph, op.inputs[0])
        fits = rank is not None and rank > 1 and self.domain.axis(rank) == 1
        plain = not op.attrs.get("training") and op.attrs.get("spatial", 1)
        known = all(self._weight(name) is not None for name in op.inputs[1:5])
        return op.inputs[:1] if fits and plain and known else []

    def _layer_data(self, op: Op) -> list[str]:
        if not self.domain.has(op) or op.attrs.get("pads", ()) is None:
            return []
        if op.kind == "AveragePool":
            padded = any(op.attrs.get("pads") or ())
            if op.attrs.get("ceil_mode") or (padded and not op.attrs.get("count_include_pad")):
                raise NotLinearError("its border windows are averaged over fewer entries")
            return op.inputs[:1]
        if any(self._weight(name) is None for name in op.inputs[1:] if name):
            return []
        if op.kind == "Gemm" and (op.attrs.get("transA") or not self._plain_bias(op)):
            return []
        weight = self._weight(op.inputs[1])
        return op.inputs[:1] if weight is not None and self._has_shape(op, weight) else []

    def _has_shape(self, op: Op, weight: Constant) -> bool:
        rank = rank_of(self.graph, op.inputs[0])
        if op.kind == "Conv":
            return rank == len(weight.shape)
        return rank is not None and rank > 1 and len(weight.shape) == 2

    def _plain_bias(self, op: Op) -> bool:
        bias = self._weight(op.input(2))
        return bias is None or sum(n != 1 for n in bias.shape[:-1]) == 0

    def _weight(self, name: str) -> Constant | None:
        constant = self.graph.constant(name) if name else None
        return constant if constant is not None and constant.dtype in FLOATS else None

    def _joined(self, op: Op) -> list[str]:
        if op.kind not in JOINS or any(self.graph.constant(name) for name in op.inputs):
            return []
        rank = rank_of(self.graph, op.outputs[0])
        ranks = {rank_of(self.graph, name) for name in op.inputs}
        if rank is None or ranks != {rank} or rank < 2:
            return []
        if op.kind == "Concat" and int(op.attrs.get("axis", 1)) % rank != self.domain.axis(rank):
            return []
        return list(op.inputs)

    def of(self, op: Op, inputs: Sequence[Linear], root: str) -> Linear:
        """The function that an operator makes of functions of one root.

        Raises:
            NotLinearError: it makes none; says why.
        """
        if op.kind in _SAME:
            return inputs[0]
        if op.kind in LAYERS:
            return composed(inputs[0], self.layer(op, inputs[0]), padded=_is_padded(op))
        if len(inputs) == 1 and op.kind in AFFINE:
            return composed(inputs[0], self._map(op, inputs[0]), padded=False)
        if op.kind == "Concat":
            return stacked(inputs, self._extent(root))
        signs = [1.0, -1.0] if op.kind == "Sub" else [1.0] * len(inputs)
        return added(inputs, signs, self._extent(root))

    def _extent(self, root: str) -> Extent:
        shape = self.graph.shape(root) or ()
        sizes = () if self.domain.dense else shape[2:]
        return tuple(n if isinstance(n, int) else None for n in sizes)

    def identity(self, value: str) -> Linear | None:
        """A value as a function of itself; None where its channels are not known."""
        rank = rank_of(self.graph, value)
        shape = self.graph.shape(value)
        if rank is None or shape is None or rank < 2:
            return None
        n = shape[self.domain.axis(rank)]
        if not isinstance(n, int):
            return None
        return identity(n, self.domain.windows(rank), numbers=self.numbers)

    # --- single operators

    def _map(self, op: Op, inner: Linear) -> Linear:
        if not self.numbers and op.kind == "BatchNormalization":
            return pointwise(None, None, inner.channels[0], len(inner.stride), biased=True)
        found = map_of(op, self.context)
        assert found is not None
        m, n, axes = found[1], inner.channels[0], len(inner.stride)
        vectors = m.vectors(self.domain.axis(m.rank), n)
        if vectors is None or vectors[0].size != n:
            raise NotLinearError("its map does not vary along the channels alone")
        if not self.numbers:
            return pointwise(None, None, n, axes, biased=m.has_shift)
        return pointwise(*vectors, n, axes, biased=m.has_shift)

    def layer(self, op: Op, inner: Linear) -> Linear:
        """The function of a layer by itself, behind another one."""
        if op.kind == "AveragePool":
            return self._pool(op, inner.channels[0])
        return self._conv(op) if op.kind == "Conv" else self._product(op)

    def _pool(self, op: Op, n: int) -> Linear:
        if "kernel_shape" not in op.attrs:  # torch's adaptive pools
            raise NotLinearError("its windows are of different sizes")
        size = [int(k) for k in op.attrs["kernel_shape"]]
        tap = np.full((n, 1), 1 / float(np.prod(size))) if self.numbers else None
        offsets, stride, tail = _offsets(op, size)
        bias = np.zeros(n) if self.numbers else None
        return Linear(dict.fromkeys(offsets, tap), bias, False, (n, n), n, stride, tail)

    def _conv(self, op: Op) -> Linear:
        weight = self._weight(op.inputs[1])
        assert weight is not None
        out, inputs, *size = weight.shape
        group = int(op.attrs.get("group", 1))
        offsets, stride, tail = _offsets(op, size)
        taps: dict[Offset, Array] = dict.fromkeys(offsets)
        if self.numbers:
            flat = weight.float64().reshape(out, inputs, -1)
            taps = {o: flat[:, :, i] for i, o in enumerate(offsets)}
        bias = self._bias(op.input(2), out, 1.0)
        channels = (out, inputs * group)
        return Linear(taps, bias, bool(op.input(2)), channels, group, stride, tail)

    def _product(self, op: Op) -> Linear:
        weight = self._weight(op.inputs[1])
        assert weight is not None
        transposed = op.kind == "Gemm" and op.attrs.get("transB")
        out, inputs = weight.shape if transposed else weight.shape[::-1]
        alpha, beta = (float(op.attrs.get(k, 1.0)) for k in ("alpha", "beta"))
        tap: Array = None
        if self.numbers:
            tap = alpha * (weight.float64() if transposed else weight.float64().T)
        bias = self._bias(op.input(2), out, beta)
        return Linear({(): tap}, bias, bool(op.input(2)), (out, inputs), 1, (), ())

    def _bias(self, name: str, n: int, factor: float) -> Array:
        if not self.numbers:
            return None
        held = self._weight(name)
        if held is None:
            return np.zeros(n)
        return factor * np.broadcast_to(held.float64().reshape(-1), (n,))


def _is_padded(op: Op) -> bool:
    return any(op.attrs.get("pads") or ())


def _offsets(
    op: Op, size: Sequence[int]
) -> tuple[list[Offset], tuple[int, ...], tuple[int, ...]]:
    """(offsets of a window's entries in C order, stride, tail)."""
    n = len(size)
    pads = [int(p) for p in op.attrs.get("pads") or (0,) * (2 * n)]
    stride = tuple(int(s) for s in op.attrs.get("strides") or (1,) * n)
    dilation = [int(d) for d in op.attrs.get("dilations") or (1,) * n]
    steps = list(zip(dilation, pads, strict=False))
    offsets = [
        tuple(i * d - p for i, (d, p) in zip(index, steps, strict=True))
        for index in np.ndindex(*size)
    ]
    highs = [(k - 1) * d - p for k, (d, p) in zip(size, steps, strict=True)]
    tail = tuple(end - high for end, high in zip(pads[n:], highs, strict=True))
    return offsets, stride, tail
