"""Gemm, MatMul and Einsum as one thing: a contraction of a constant with a dynamic operand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Op
from bnpass.rules.base import MapRefusedError, RuleContext
from bnpass.rules.quantised import is_weight

_BATCH = "abcdefgh"
_NO_LETTER = 0x100  # added to a letter: no equation has what comes out


@dataclass(frozen=True)
class Contraction:
    """output = einsum(dynamic, constant), every axis named by a letter.

    Attributes:
        index: which input is the constant (0 or 1).
        constant, dynamic, output: the letters of the axes; where an axis of size 1 is broadcast
            its letter is another one, so that it is no axis of the output.
    """

    index: int
    constant: str
    dynamic: str
    output: str

    def to_dynamic(self, m: Map) -> Map:
        """A map on the output, along axes of the dynamic operand, as that operand sees it."""
        return m.each(lambda a: aligned(a, self.output, self.dynamic))

    def to_output(self, m: Map) -> Map:
        """A map on the dynamic operand, along axes of the output, as the output sees it."""
        return m.each(lambda a: aligned(a, self.dynamic, self.output))


def aligned(a: np.ndarray, source: str, target: str) -> np.ndarray:
    """Axes of ``a`` (named by ``source``, size 1 if not in ``target``) in the order of target."""
    kept = [i for i, letter in enumerate(source) if letter in target]
    a = a.reshape([a.shape[i] for i in kept])
    letters = [source[i] for i in kept]
    a = a.transpose([letters.index(t) for t in target if t in letters])
    return np.expand_dims(a, [i for i, t in enumerate(target) if t not in letters])


def contraction(op: Op, context: RuleContext) -> Contraction:
    """The letters of a Gemm, MatMul or Einsum with exactly one constant operand."""
    fixed = [i for i in (0, 1) if context.constant(op.input(i)) is not None]
    if not fixed and op.kind != "Einsum":
        fixed = [i for i in (0, 1) if is_weight(op.input(i), context)]
    if len(op.inputs) < 2 or len(fixed) != 1 or (op.kind == "Einsum" and len(op.inputs) != 2):
        why = next((f": {n!r} is {w}" for n in op.inputs if (w := context.pinned(n, ""))), "")
        raise MapRefusedError(f"it has no constant operand{why}", op)
    if op.kind == "Einsum":
        terms, output = _einsum(op)
        terms[fixed[0]] = _stretched(op, fixed[0], terms, output, context)
    elif op.kind == "Gemm":
        terms, output = _gemm(op, len(context.shape(op.inputs[0])))
    else:
        terms, output = _matmul(op, context)
    return Contraction(fixed[0], terms[fixed[0]], terms[1 - fixed[0]], output)


def _einsum(op: Op) -> tuple[list[str], str]:
    text = str(op.attrs["equation"]).replace(" ", "")
    if "." in text or "->" not in text:
        raise MapRefusedError("its equation has an ellipsis or no explicit output", op)
    left, output = text.split("->")
    one, other = left.split(",")
    if any(len(set(t)) != len(t) for t in (one, other, output)):
        raise MapRefusedError("its equation takes a diagonal", op)
    return [one, other], output


def _stretched(op: Op, fixed: int, terms: list[str], output: str, context: RuleContext) -> str:
    """The constant's letters; a summed axis of size 1 that the other operand stretches is none."""
    constant, other = context.constant(op.inputs[fixed]), terms[1 - fixed]
    assert constant is not None
    letters = list(terms[fixed])
    for place, letter in enumerate(letters):
        if constant.shape[place] == 1 and letter in other and letter not in output:
            size = context.shape(op.inputs[1 - fixed])[other.index(letter)]
            if size != 1:
                letters[place] = chr(_NO_LETTER + ord(letter))
    return "".join(letters)


def _gemm(op: Op, rank: int) -> tuple[list[str], str]:
    """A may have any rank in the neutral view (F.linear): its last axis is contracted."""
    if op.attrs.get("transA"):
        a, rows = "km", "m"
    else:
        rows = _BATCH[: rank - 2] + "m" if rank > 1 else ""
        a = rows + "k"
    return [a, "nk" if op.attrs.get("transB") else "kn"], rows + "n"


def _matmul(op: Op, context: RuleContext) -> tuple[list[str], str]:
    """numpy.matmul: leading axes broadcast from the right, rank 1 drops its axis."""
    shapes = [context.shape(op.inputs[0]), context.shape(op.inputs[1])]
    ranks = [len(s) for s in shapes]
    count = max(max(ranks) - 2, 0)
    lead = []
    for shape, rank in zip(shapes, ranks, strict=True):
        letters = _BATCH[:count][count - max(rank - 2, 0) :]
        dims = shape[: len(letters)]
        lead.append("".join(c.upper() if d == 1 else c for c, d in zip(letters, dims, strict=True)))
    batch = ""
    for letter in _BATCH[:count]:
        both = [lead[0], lead[1]]
        batch += letter if any(letter in part for part in both) else letter.upper()
    a = lead[0] + ("mk" if ranks[0] > 1 else "k")
    b = lead[1] + ("kn" if ranks[1] > 1 else "k")
    output = batch + ("m" if ranks[0] > 1 else "") + ("n" if ranks[1] > 1 else "")
    return [a, b], output
