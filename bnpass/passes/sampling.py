"""What a small region of elementwise operators computes, found by evaluating it at a few points."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bnpass.ir.graph import Graph, Op
from bnpass.ir.operators import operator

POINTS = np.linspace(-4.25, 4.25, 35)
"""Where functions of one number are compared; none of their corners lies here."""


def sampled(ops: Iterable[Op], entry: str, graph: Graph) -> dict[str, np.ndarray] | None:
    """The values of a region's operators, given in order, where its entry is :data:`POINTS`.

    None where an operator is not known here.
    """
    values = {entry: POINTS}
    for op in ops:
        formula = operator(op.kind).formula
        if formula is None:
            return None
        inputs = [_value(name, values, graph) for name in op.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        try:
            with np.errstate(all="ignore"):
                values[op.outputs[0]] = formula(op.attrs, *inputs)
        except TypeError:
            return None
    return values


def _value(name: str, values: dict[str, np.ndarray], graph: Graph) -> np.ndarray | None:
    if name in values:
        return values[name]
    constant = graph.constant(name) if name else None
    return None if constant is None else np.asarray(constant.small, np.float64).reshape(-1)


def factor_of(values: np.ndarray, reference: np.ndarray, tolerance: float) -> float | None:
    """c where ``values`` is c times ``reference``; None where no c makes it so."""
    if values.shape != reference.shape or not np.isfinite(values).all():
        return None
    c = float(values @ reference / (reference @ reference))
    worst = float(np.abs(values - c * reference).max())
    return c if c and worst <= tolerance * abs(c) * float(np.abs(reference).max()) else None
