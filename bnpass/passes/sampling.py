"""What a small region of elementwise operators computes, found by evaluating it at a few points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from bnpass.ir.graph import Graph, Op

POINTS = np.linspace(-4.25, 4.25, 35)
"""Where functions of one number are compared; none of their corners lies here."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


def _clip(
    x: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> np.ndarray:
    return x if low is high is None else np.clip(x, low, high)


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Max": lambda *values: np.maximum.reduce(values),
    "Min": lambda *values: np.minimum.reduce(values),
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Log": np.log,
    "Abs": np.abs,
    "Exp": np.exp,
    "Reciprocal": np.reciprocal,
    "Erf": _erf,
    "Tanh": np.tanh,
    "Sigmoid": sigmoid,
    "Softplus": lambda x: np.logaddexp(x, 0.0),
    "Relu": lambda x: np.maximum(x, 0),
    "Clip": _clip,
    "Identity": lambda x: x,
    "Cast": lambda x: x,
}


def _function(op: Op) -> Callable[..., np.ndarray] | None:
    if op.kind == "HardSigmoid":
        alpha, beta = float(op.attrs.get("alpha", 0.2)), float(op.attrs.get("beta", 0.5))
        return lambda x: np.clip(alpha * x + beta, 0, 1)
    return _FUNCTIONS.get(op.kind)


def sampled(ops: Iterable[Op], entry: str, graph: Graph) -> dict[str, np.ndarray] | None:
    """The values of a region's operators, given in order, where its entry is :data:`POINTS`.

    None where an operator is not known here.
    """
    values = {entry: POINTS}
    for op in ops:
        function = _function(op)
        if function is None:
            return None
        inputs = [_value(name, values, graph) for name in op.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        try:
            with np.errstate(all="ignore"):
                values[op.outputs[0]] = function(*inputs)
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
