"""Operators that treat every entry alike: sums, products, max and min, rectifiers, casts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Op
from bnpass.rules.base import MapRefusedError, Rule, RuleContext, Step, data_only, only

FLOATS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""Bits of significand by numpy's type name."""


# --- broadcasting


def to_operand(m: Map, op: Op, index: int, context: RuleContext) -> Map:
    """The part of a map on a broadcasting operator's output that one operand sees.

    Axes are aligned from the right. A constant operand may grow, so it takes the map whole.
    """
    value = op.inputs[index]
    if context.constant(value) is not None:
        return m
    dims = context.shape(value)
    extra = m.rank - len(dims)

    def broadcast(m: Map) -> bool:
        return any(axis < extra or dims[axis - extra] != m.shape[axis] for axis in m.axes)

    if broadcast(m):
        m = m.compact()  # a uniform scale may still pass
    if broadcast(m):
        raise MapRefusedError(f"its operand {value!r} is broadcast along the channels", op)
    return m.each(lambda a: a.reshape(a.shape[extra:]))


def to_output(m: Map, op: Op, context: RuleContext) -> Map:
    """An operand's map as the broadcasting operator's output sees it."""
    extra = len(context.shape(op.outputs[0])) - m.rank
    return m.each(lambda a: a.reshape((1,) * extra + a.shape))


def dynamic(op: Op, context: RuleContext) -> list[int]:
    """Indices of the operands that are no constants."""
    return [i for i, name in enumerate(op.inputs) if name and context.constant(name) is None]


def constants(op: Op, context: RuleContext) -> list[int]:
    """Indices of the operands that are constants."""
    return [i for i, name in enumerate(op.inputs) if name and context.constant(name) is not None]


# --- Add, Sub, Sum, Mean


def _signs(op: Op) -> list[float]:
    """The factor with which every operand enters the sum."""
    n = len(op.inputs)
    if op.kind == "Sub":
        return [1.0, -1.0]
    return [1.0 / n if op.kind == "Mean" else 1.0] * n


def sum_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """The scale goes to every operand, the shift to one of them, or in equal parts to all."""
    m = only(asks)
    signs = _signs(op)
    everyone = {i: to_operand(m.scale_only(), op, i, context) for i in range(len(op.inputs))}
    if not m.has_shift:
        return [Step(asks=everyone)]
    free = dynamic(op, context)
    shares = [{i: 1.0 / signs[i]} for i in [*constants(op, context), *free]]
    if len(free) > 1:  # a term that several operands share must get the same from each
        counts = [context.paths(op.inputs[i]) for i in free]
        for parts in ([1] * len(free), counts) if len(set(counts)) > 1 else (counts,):
            pairs = zip(free, parts, strict=True)
            shares.append({i: n / sum(parts) / signs[i] for i, n in pairs})
    steps = []
    reason: MapRefusedError | None = None
    for share in shares:
        try:
            asked = {
                i: to_operand(m.with_shift(m.shift * share.get(i, 0.0)), op, i, context)
                for i in everyone
            }
        except MapRefusedError as refusal:
            reason = refusal
        else:
            steps.append(Step(asks=asked))
    if not steps and reason is not None:
        raise reason
    return steps


def sum_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """A shift alone passes; a scale only if all operands that are no constants carry it."""
    maps = {i: to_output(m, op, context) for i, m in carried.items()}
    scale = next(iter(maps.values())).scale_only()
    for i in dynamic(op, context):
        other = maps[i].scale_only() if i in maps else Map.identity(scale.rank)
        if not other.equals(scale):
            raise MapRefusedError(f"its operand {op.inputs[i]!r} does not carry the same scale", op)
    signs = _signs(op)
    shift = sum((m.shift * signs[i] for i, m in maps.items()), np.zeros((1,) * scale.rank))
    fixed = constants(op, context)
    if not fixed:
        return [Step(gives={0: scale.with_shift(shift)})]
    return _into_constant(op, scale.with_shift(shift), fixed, signs, context)


def _into_constant(
    op: Op, m: Map, fixed: list[int], signs: list[float], context: RuleContext
) -> list[Step]:
    """scale*x + shift + c = scale * (x + (c + shift)/scale); else the constant stays as it is."""
    steps = []
    if (m.scale != 0).all():
        edits = {i: Map(1 / m.scale, np.zeros_like(m.scale)) for i in fixed}
        first = fixed[0]
        edits[first] = Map(1 / m.scale, m.shift / m.scale / signs[first])
        steps.append(Step(constants=edits, gives={0: m.scale_only()}))
    total = sum(signs[i] * context.current(op, i) for i in fixed)
    steps.append(Step(gives={0: m.with_shift(m.shift + (1 - m.scale) * total)}))
    return steps


# --- Mul, Div, Neg


def product_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """The scale goes to one operand, a constant one first; a shift only past a constant."""
    m = only(asks)
    if m.has_shift:
        return [_shift_past_constant(op, m, context)]
    steps = []
    for i in [*constants(op, context), *dynamic(op, context)]:
        if op.kind == "Div" and i == 1 and (m.scale == 0).any():
            continue
        part = Map(1 / m.scale, m.shift) if op.kind == "Div" and i == 1 else m
        try:
            steps.append(Step(asks={i: to_operand(part, op, i, context)}))
        except MapRefusedError:
            continue
    if not steps:
        raise MapRefusedError("no operand can take the scale", op)
    return steps


def _factor(op: Op, context: RuleContext) -> tuple[int, np.ndarray]:
    """(data operand, constant factor in float64) of x*c, c*x and x/c."""
    fixed, free = constants(op, context), dynamic(op, context)
    if len(fixed) != 1 or len(free) != 1 or (op.kind == "Div" and free != [0]):
        raise MapRefusedError("a shift cannot pass a product of two values", op)
    factor = context.current(op, fixed[0])
    return free[0], 1 / factor if op.kind == "Div" else factor


def _shift_past_constant(op: Op, m: Map, context: RuleContext) -> Step:
    data, factor = _factor(op, context)
    if not (factor != 0).all() or not np.isfinite(factor).all():
        raise MapRefusedError("a shift cannot pass a product with zero", op)
    asked = m.with_shift(m.shift / factor)
    return Step(asks={data: to_operand(asked, op, data, context)})


def product_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """Scales multiply (a divisor's inversely); a shift passes only a constant factor."""
    maps = {i: to_output(m, op, context) for i, m in carried.items()}
    if op.kind == "Div" and 1 in maps:
        if (maps[1].scale == 0).any() or maps[1].has_shift:
            raise MapRefusedError("a zero scale or a shift cannot pass a divisor", op)
        maps[1] = Map(1 / maps[1].scale, maps[1].shift)
    fixed = constants(op, context)
    if not any(m.has_shift for m in maps.values()):
        scale = np.asarray(1.0)
        for m in maps.values():
            scale = scale * m.scale
        return _scale_into_factor(op, scale, fixed)
    if len(maps) != 1:
        raise MapRefusedError("a shift cannot pass a product of two values", op)
    _, factor = _factor(op, context)
    (m,) = maps.values()
    return [
        Step(constants=step.constants, gives={0: _merge(step.gives.get(0), m.shift * factor)})
        for step in _scale_into_factor(op, m.scale, fixed)
    ]


def _merge(m: Map | None, shift: np.ndarray) -> Map:
    return Map(np.ones((1,) * shift.ndim) if m is None else m.scale, shift)


def _scale_into_factor(op: Op, scale: np.ndarray, fixed: list[int]) -> list[Step]:
    zero = np.zeros((1,) * scale.ndim)
    steps = []
    if fixed:
        inverse = op.kind == "Div" and fixed[0] == 1
        if not (inverse and (scale == 0).any()):
            steps.append(Step(constants={fixed[0]: Map(1 / scale if inverse else scale, zero)}))
    steps.append(Step(gives={0: Map(scale, zero)}))
    return steps


def neg_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """scale*(-x) + shift = -(scale*x - shift)."""
    m = only(asks)
    return [Step(asks={0: m.with_shift(-m.shift)})]


def neg_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """-(scale*x + shift) = scale*(-x) - shift."""
    m = data_only(op, carried)
    return [Step(gives={0: m.with_shift(-m.shift)})]


# --- Max, Min


def extremum_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """The same map to every operand, if no scale is negative."""
    m = only(asks)
    if not m.is_monotone:
        raise MapRefusedError("a negative scale cannot pass it", op)
    return [Step(asks={i: to_operand(m, op, i, context) for i in range(len(op.inputs))})]


def extremum_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """The same map from every operand, if no scale is negative; constants take the inverse."""
    maps = {i: to_output(m, op, context) for i, m in carried.items()}
    m = next(iter(maps.values()))
    if not m.is_monotone:
        raise MapRefusedError("a negative scale cannot pass it", op)
    for i in dynamic(op, context):
        if i not in maps or not maps[i].equals(m):
            raise MapRefusedError(f"its operand {op.inputs[i]!r} does not carry the same map", op)
    fixed = constants(op, context)
    if fixed and (m.scale == 0).any():
        raise MapRefusedError("a zero scale cannot be undone in its constant operand", op)
    inverse = Map(1 / m.scale, -m.shift / m.scale) if fixed else m
    return [Step(gives={0: m}, constants=dict.fromkeys(fixed, inverse))]


# --- rectifiers, identities, casts


def _rectified(op: Op, m: Map) -> Map:
    if not m.is_monotone:
        raise MapRefusedError("a negative scale cannot pass it", op)
    if m.has_shift:
        raise MapRefusedError("a shift cannot pass it", op)
    return m


def rectifier_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """relu(s*x) = s*relu(x) for s >= 0; LeakyRelu and PRelu alike."""
    return [Step(asks={0: _rectified(op, only(asks))})]


def rectifier_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """relu(s*x) = s*relu(x) for s >= 0; LeakyRelu and PRelu alike."""
    return [Step(gives={0: _rectified(op, data_only(op, carried))})]


def _check_passes(op: Op, context: RuleContext) -> None:
    if op.attrs.get("training"):
        raise MapRefusedError("a Dropout in training mode is no constant factor", op)
    if op.kind == "Cast":
        source, target = op.attrs.get("from"), op.attrs.get("to")
        if source not in FLOATS or target not in FLOATS:
            raise MapRefusedError("a cast that is not between floating-point types", op)
        widens = FLOATS[str(target)] >= FLOATS[str(source)]
        if not widens or (source, target) in (("bfloat16", "float16"),):
            raise MapRefusedError(f"a cast from {source} to {target} rounds", op)


def identity_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """Identity, Dropout at inference, and a Cast that widens pass everything."""
    m = only(asks)
    _check_passes(op, context)
    return [Step(asks={0: m})]


def identity_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """Identity, Dropout at inference, and a Cast that widens pass everything."""
    m = data_only(op, carried)
    _check_passes(op, context)
    if any(not context.unread(name) for name in op.outputs[1:] if name):
        raise MapRefusedError("its mask is read", op)
    return [Step(gives={0: m})]


SUM = Rule(sum_backward, sum_forward)
PRODUCT = Rule(product_backward, product_forward)
NEG = Rule(neg_backward, neg_forward)
EXTREMUM = Rule(extremum_backward, extremum_forward)
RECTIFIER = Rule(rectifier_backward, rectifier_forward)
IDENTITY = Rule(identity_backward, identity_forward)
