"""Which operators are per-channel affine maps: a BatchNorm, a Mul, Add, Sub, Div or Neg."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from bnpass.ir.affine import Map, infinite_channel
from bnpass.ir.graph import Op
from bnpass.rules import quantised
from bnpass.rules.absorbers import weight
from bnpass.rules.base import MapRefusedError, RuleContext
from bnpass.rules.elementwise import FLOATS

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})  # whose algebra is in _arithmetic below


def map_of(op: Op, context: RuleContext) -> tuple[int, Map] | None:
    """(data input, map) of an operator that is a map; None when it is none.

    Raises:
        MapRefusedError: a BatchNormalization that is no map (training mode, parameters that
            are computed).
    """
    if op.kind == "BatchNormalization":
        return 0, _batch_norm(op, context)
    if op.kind == "Neg":
        rank = context.rank(op.inputs[0])
        return 0, Map(np.full((1,) * rank, -1.0), np.zeros((1,) * rank))
    if op.kind in _ARITHMETIC:
        return _arithmetic(op, context)
    return None


def _batch_norm(op: Op, context: RuleContext) -> Map:
    if op.attrs.get("training"):
        read = not all(context.unread(name) for name in op.outputs[1:] if name)
        why = ", which are read, too" if read else ""
        raise MapRefusedError(f"it normalises with batch statistics (training_mode=1){why}", op)
    if not op.attrs.get("spatial", 1):
        raise MapRefusedError("it normalises every entry by itself (spatial=0)", op)
    gamma, beta, mean, var = [_parameter(op, i, context).reshape(-1) for i in (1, 2, 3, 4)]
    m = Map.along(1, _rank(op, context), *_numbers(gamma, beta, mean, var, _epsilon(op)))
    if not m.is_finite:
        raise MapRefusedError(_odd_statistics(gamma, beta, mean, var, _epsilon(op)), op)
    return m


def _odd_statistics(
    gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, epsilon: float
) -> str:
    """Which of the numbers of a BatchNorm, in which channel, make no map."""
    known = {"scale": gamma, "shift": beta, "mean": mean, "variance": var}
    for name, numbers in known.items():
        channel = infinite_channel(numbers)
        if channel is not None or not np.isfinite(numbers).all():
            channel = channel or 0
            return f"its {name} is not finite: {numbers[channel]} in channel {channel}"
    bad = np.flatnonzero(var + epsilon <= 0)
    if bad.size:
        return (f"its variance is negative: {var[bad[0]]:g} with epsilon {epsilon:g} in channel "
                f"{bad[0]}")
    return "its scale or shift is not finite"


def _parameter(op: Op, index: int, context: RuleContext) -> np.ndarray:
    """A parameter of a BatchNorm; what constant codes stand for is one as well."""
    found = quantised.dequantised(op.input(index), context)
    if found is not None:
        return found
    weight(op, index, context)
    return context.current(op, index)


def norm_maps(ops: Iterable[Op], context: RuleContext) -> dict[str, Map]:
    """The maps of many BatchNorms by name: :func:`map_of` for all of one size at once.

    One that is no map, or whose parameters do not lie ready, is left out: ask :func:`map_of`.
    """
    alike: dict[tuple[int, tuple[int, ...], str, float], tuple[list[str], list[bytes]]] = {}
    for op in ops:
        if op.attrs.get("training") or not op.attrs.get("spatial", 1) or len(op.inputs) != 5:
            continue
        found = [c for c in map(context.constant, op.inputs[1:]) if c is not None]
        raws = [raw for c in found if (raw := c.raw)]
        forms = {(len(raw), c.dtype) for raw, c in zip(raws, found, strict=False)}
        if len(raws) != 4 or len(forms) > 1:
            continue
        try:
            key = (_rank(op, context), found[0].shape, found[0].dtype, _epsilon(op))
        except MapRefusedError:
            continue
        names, data = alike.setdefault(key, ([], []))
        names.append(op.name)
        data += raws
    maps: dict[str, Map] = {}
    for (rank, shape, name, epsilon), (names, data) in alike.items():
        size = math.prod(shape) * np.dtype(name).itemsize if name in FLOATS else -1
        if {len(raw) for raw in data} == {size}:
            made = Map.many(*_all_numbers(rank, np.dtype(name), epsilon, data))
            maps.update((n, m) for n, m in zip(names, made, strict=True) if m.is_finite)
    return maps


def _all_numbers(
    rank: int, dtype: np.dtype, epsilon: float, raws: list[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift), (n, 1, C, 1, ...), from the bytes of n times gamma, beta, mean, variance."""
    data = np.frombuffer(b"".join(raws), dtype.newbyteorder("<")).astype(np.float64)
    gamma, beta, mean, var = data.reshape(len(raws) // 4, 4, -1).swapaxes(0, 1)
    scale, shift = _numbers(gamma, beta, mean, var, epsilon)
    shape = (len(scale), 1, -1, *(1,) * (rank - 2))
    return scale.reshape(shape), shift.reshape(shape)


def _rank(op: Op, context: RuleContext) -> int:
    return max(context.rank(op.inputs[0]), 2)


def _epsilon(op: Op) -> float:
    return float(op.attrs.get("epsilon", 1e-5))


def _numbers(
    gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) of Algorithm 2, line 11."""
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + epsilon)
        return scale, beta - scale * mean


def _arithmetic(op: Op, context: RuleContext) -> tuple[int, Map] | None:
    fixed = [i for i in (0, 1) if context.constant(op.inputs[i]) is not None]
    if len(fixed) != 1 or (op.kind == "Div" and fixed != [1]):
        return None
    constant = context.constant(op.inputs[fixed[0]])
    assert constant is not None
    data = 1 - fixed[0]
    if constant.dtype not in FLOATS:
        return None
    dims = context.shape(op.inputs[data])
    if not _fits(constant.shape, dims):
        return None
    array = context.current(op, fixed[0])
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
