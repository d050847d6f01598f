"""Which operators are per-channel affine maps: a BatchNorm, a Mul, Add, Sub, Div or Neg."""

from __future__ import annotations

import numpy as np

from bnpass.affine import Map
from bnpass.graph import Op
from bnpass.rules.absorbers import weight
from bnpass.rules.base import MapRefusedError, View
from bnpass.rules.elementwise import FLOATS

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
AFFINE = ARITHMETIC | {"BatchNormalization", "Neg"}


def map_of(op: Op, view: View) -> tuple[int, Map] | None:
    """(data input, map) of an operator that is a map; None when it is none.

    Raises:
        MapRefusedError: a BatchNormalization that is no map (training mode, parameters that
            are computed).
    """
    if op.kind == "BatchNormalization":
        return 0, _batch_norm(op, view)
    if op.kind == "Neg":
        rank = view.rank(op.inputs[0])
        return 0, Map(np.full((1,) * rank, -1.0), np.zeros((1,) * rank))
    if op.kind in ARITHMETIC:
        return _arithmetic(op, view)
    return None


def _batch_norm(op: Op, view: View) -> Map:
    if op.attrs.get("training"):
        raise MapRefusedError("it normalises with batch statistics (training_mode=1)", op)
    if not op.attrs.get("spatial", 1):
        raise MapRefusedError("it normalises every entry by itself (spatial=0)", op)
    for index in (1, 2, 3, 4):
        weight(op, index, view)
    gamma, beta, mean, var = [view.current(op, i).reshape(-1) for i in (1, 2, 3, 4)]
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + float(op.attrs.get("epsilon", 1e-5)))
        shift = beta - scale * mean
    m = Map.along(1, max(view.rank(op.inputs[0]), 2), scale, shift)
    if not m.is_finite:
        raise MapRefusedError("its statistics are not finite or its variance is negative", op)
    return m


def _arithmetic(op: Op, view: View) -> tuple[int, Map] | None:
    fixed = [i for i in (0, 1) if view.constant(op.inputs[i]) is not None]
    if len(fixed) != 1 or (op.kind == "Div" and fixed != [1]):
        return None
    constant = view.constant(op.inputs[fixed[0]])
    assert constant is not None
    data = 1 - fixed[0]
    if constant.dtype not in FLOATS:
        return None
    dims = view.shape(op.inputs[data])
    if not _fits(constant.shape, dims):
        return None
    array = view.current(op, fixed[0])
    array = array.reshape((1,) * (len(dims) - array.ndim) + array.shape)
    one, zero = np.ones((1,) * len(dims)), np.zeros((1,) * len(dims))
    with np.errstate(all="ignore"):
        m = {
            "Mul": lambda: Map(array, zero),
            "Div": lambda: Map(1 / array, zero),
            "Add": lambda: Map(one, array),
            "Sub": lambda: Map(one, -array) if data == 0 else Map(-one, array),
        }[op.kind]()
    return (data, m) if m.is_finite and len(m.axes) <= 1 else None


def _fits(shape: tuple[int, ...], dims: tuple[object, ...]) -> bool:
    """Whether a constant is broadcast to the value's shape without growing it, along one axis."""
    if len(shape) > len(dims) or sum(n != 1 for n in shape) > 1:
        return False
    return all(n in (1, d) for n, d in zip(shape, dims[len(dims) - len(shape) :], strict=True))
