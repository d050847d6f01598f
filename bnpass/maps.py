"""Which operators are per-channel affine maps: a BatchNorm, a Mul, Add, Sub, Div or Neg."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bnpass.affine import Map
from bnpass.graph import Constant, Op, stacked
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
    m = Map.along(1, _rank(op, view), *_numbers(gamma, beta, mean, var, _epsilon(op)))
    if not m.is_finite:
        raise MapRefusedError("its statistics are not finite or its variance is negative", op)
    return m


def norm_maps(ops: Iterable[Op], view: View) -> dict[str, Map]:
    """The maps of many BatchNorms by name: :func:`map_of` for all of one size at once.

    One that is no map, or has taken something in, is left out: :func:`map_of` tells of it.
    """
    alike: dict[tuple[int, int, str, float], list[tuple[Op, list[Constant]]]] = {}
    for op in ops:
        parameters = _parameters(op, view)
        if parameters is None:
            continue
        try:
            rank = _rank(op, view)
        except MapRefusedError:
            continue
        first = parameters[0]
        key = (rank, first.shape[0], first.dtype, _epsilon(op))
        alike.setdefault(key, []).append((op, parameters))
    found: dict[str, Map] = {}
    for (rank, size, _, epsilon), group in alike.items():
        data = stacked([c for _, parameters in group for c in parameters])
        gamma, beta, mean, var = data.reshape(-1, 4, size).swapaxes(0, 1)
        shape = (-1, 1, size, *(1,) * (rank - 2))
        scale, shift = (a.reshape(shape) for a in _numbers(gamma, beta, mean, var, epsilon))
        for (op, _), m in zip(group, Map.many(scale, shift), strict=True):
            if m.is_finite:
                found[op.name] = m
    return found


def _parameters(op: Op, view: View) -> list[Constant] | None:
    """gamma, beta, mean and variance where all are constants of one shape (C,) and type."""
    if op.attrs.get("training") or not op.attrs.get("spatial", 1) or len(op.inputs) != 5:
        return None
    found = [c for c in map(view.constant, op.inputs[1:]) if c is not None]
    forms = {(c.dtype, c.shape) for c in found}
    if len(found) != 4 or len(forms) != 1:
        return None
    ((dtype, shape),) = forms
    return found if dtype in FLOATS and len(shape) == 1 else None


def _rank(op: Op, view: View) -> int:
    return max(view.rank(op.inputs[0]), 2)


def _epsilon(op: Op) -> float:
    return float(op.attrs.get("epsilon", 1e-5))


def _numbers(
    gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) of Algorithm 2, line 11."""
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + epsilon)
        return scale, beta - scale * mean


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
