"""Layers whose weights are integers: a scale enters the weight's scale, a shift the bias.

1. ``DequantizeLinear`` of constant codes: ``(code - zero) * scale`` takes the size of a map's scale
   into its own, one for each channel then, and the sign into the codes; a shift only where the
   codes are int32 (a bias), to the nearest step.
2. ``QuantizeLinear`` of a constant weight in front of it (training with fake quantisation): the
   weight and both scales take the map in, so that every code is what it was, or its negative.
3. A layer that is quantised at run time is
   ``Cast(MatMulInteger(q, codes)) * (x_scale * weight_scale) + bias``.

What quantises an activation lets no map pass: rounding does not commute with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Op
from bnpass.rules.base import (
    MapRefusedError,
    Rule,
    RuleContext,
    Step,
    only,
    refuse_backward,
    refuse_forward,
)
from bnpass.rules.elementwise import FLOATS, constants

_BY_CODES = frozenset({"int8", "uint8", "int16", "uint16", "int32"})
_MOVING = frozenset({"Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze"})  # of a weight
# (The table of operators is made of the rules: they cannot read it.)
_ROUNDS = "it is quantised: rounding does not commute with a map"


def is_weight(value: str, context: RuleContext) -> bool:
    """Whether a value is a weight (or a bias) that constant codes stand for."""
    op = context.producer(value) if value else None
    while op is not None and op.kind in _MOVING:
        op = context.producer(op.inputs[0])
    return op is not None and op.kind == "DequantizeLinear" and _has_codes(op, context)


def _has_codes(op: Op, context: RuleContext) -> bool:
    fixed = context.constant(op.inputs[0]) is not None
    return fixed or quantizer(op, context) is not None


def quantizer(op: Op, context: RuleContext) -> Op | None:
    """The QuantizeLinear of a constant weight whose codes a DequantizeLinear reads."""
    found = context.producer(op.inputs[0])
    if found is None or found.kind != "QuantizeLinear":
        return None
    return found if context.constant(found.inputs[0]) is not None else None


def dequantised(value: str, context: RuleContext) -> np.ndarray | None:
    """The numbers, float64, that constant codes of one scale stand for; None where it is none."""
    op = context.producer(value) if value else None
    if op is None or op.kind != "DequantizeLinear":
        return None
    codes, scale, zero = (context.constant(op.input(i)) for i in (0, 1, 2))
    if codes is None or scale is None or (op.input(2) and zero is None):
        return None
    if len(scale.shape) > 1 or op.attrs.get("block_size") or len(codes.shape) != 1:
        return None
    middle = 0.0 if zero is None else context.current(op, 2)
    return np.asarray((context.current(op, 0) - middle) * context.current(op, 1))


# --- 1. and 2.


def dequantize_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """Constant codes, or those of a constant weight, take a map in along their channels."""
    m = only(asks)
    source = quantizer(op, context)
    if source is None and context.constant(op.inputs[0]) is None:
        raise MapRefusedError(_ROUNDS, op)
    for one in (op, *([source] if source is not None else ())):
        _check_parameters(one, m, context)
    codes = context.constant(op.inputs[0]) if source is None else None
    if m.has_shift and (codes is None or codes.dtype != "int32"):
        raise MapRefusedError("a shift cannot go into its integer codes", op)
    if source is None:
        check_codes(op, m, context)
        return [Step(output_map=m)]
    return [Step(output_map=m, others=[(source, m)], inside={op.inputs[0]: None})]


def _check_parameters(op: Op, m: Map, context: RuleContext) -> None:
    """The scale has to be constant, and lie along the map's channels or become one a channel."""
    scale, zero = context.constant(op.inputs[1]), context.constant(op.input(2))
    if scale is None or scale.dtype not in FLOATS or (op.input(2) and zero is None):
        raise MapRefusedError("its scale or zero point is no constant", op)
    kind = zero.dtype if zero is not None else "uint8" if op.kind == "QuantizeLinear" else ""
    codes = context.constant(op.inputs[0])
    kind = codes.dtype if op.kind == "DequantizeLinear" and codes is not None else kind
    if op.attrs.get("block_size") or (kind and kind not in _BY_CODES):
        raise MapRefusedError(f"its weight is quantised in blocks or as {kind}", op)
    if not m.scale_only().compact().axes:
        return
    if len(m.axes) > 1:
        raise MapRefusedError("the map does not vary along its channels alone", op)
    if op.attrs.get("one_scale"):
        raise MapRefusedError("its opset has no scale for each channel (13 has)", op)
    if np.prod(scale.shape, dtype=int) > 1 and m.axes != (scale_axis(op, m.rank),):
        raise MapRefusedError("its weight is not quantised along its output channels", op)


def scale_axis(op: Op, rank: int) -> int:
    """The axis along which an operator's scales lie, if they are more than one."""
    return int(op.attrs.get("axis", 1)) % max(rank, 1)


def check_codes(op: Op, m: Map, context: RuleContext) -> None:
    """Raise MapRefusedError, with the channel, where the codes of a bias would overflow."""
    if not m.has_shift:
        return
    codes, scale = context.current(op, 0), context.current(op, 1)
    with np.errstate(all="ignore"):
        moved = np.abs(codes) + np.abs(m.shift / (scale * np.where(m.scale == 0, 1, m.scale)))
    worst = np.atleast_1d(moved)
    if not (worst < np.iinfo(np.int32).max).all():
        channel = int(np.argmax(np.nan_to_num(worst, nan=np.inf)))
        raise MapRefusedError(f"the code of its channel {channel} would overflow", op)


# --- 3. layers quantised at run time


def layer_backward(
    end: Op, scales: Op | None, asks: Sequence[Map | None], axis: int, context: RuleContext
) -> list[Step]:
    """A map on the result of a layer quantised at run time.

    Args:
        end: the Mul by the scales, or the Add of a bias behind it.
        scales: the operator with the weight's scale in it; None where that is no constant.
        asks: the map asked of the result.
        axis: of its channels.
        context: the graph around.
    """
    m = only(asks)
    channel = axis % m.rank
    if not m.varies_along(channel):
        raise MapRefusedError("the map does not vary along its channels alone", end)
    if scales is None:
        raise MapRefusedError("the scale of its weight is no constant", end)
    fixed = constants(scales, context)
    if len(fixed) != 1:
        raise MapRefusedError("the scale of its weight is no constant", end)
    factor = (scales, fixed[0], _trailing(m.scale_only(), channel))
    inside: dict[str, Map | None] = {}
    if scales is not end:
        inside[scales.outputs[0]] = None  # from now on a number for each channel
    if end.kind != "Add":
        after = m.shift_only() if m.has_shift else None
        return [Step(output_map=after, adds=int(m.has_shift), elsewhere=[factor], inside=inside)]
    (bias,) = constants(end, context)
    inside[end.inputs[1 - bias]] = m.scale_only()
    return [Step(elsewhere=[factor, (end, bias, _trailing(m, channel))], inside=inside)]


def _trailing(m: Map, channel: int) -> Map:
    """The map without the axes in front of its channels: a scalar grows to a vector."""
    return m.each(lambda a: np.reshape(a, a.shape[channel:]))


DEQUANTIZE = Rule(dequantize_backward, refuse_forward(_ROUNDS))
QUANTIZED = Rule(refuse_backward(_ROUNDS), refuse_forward(_ROUNDS))
