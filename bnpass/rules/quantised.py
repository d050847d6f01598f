"""Layers whose weights are integers: a scale enters the weight's scale, a shift the bias behind.

The codes stay what they are. A layer that is quantised at run time is
``Cast(MatMulInteger(q, codes)) * (x_scale * weight_scale) + bias``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Op
from bnpass.rules.base import MapRefusedError, RuleContext, Step, only
from bnpass.rules.elementwise import constants


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
    if end.kind != "Add":
        after = m.shift_only() if m.has_shift else None
        return [Step(output_map=after, adds=int(m.has_shift), elsewhere=[factor])]
    (bias,) = constants(end, context)
    return [Step(elsewhere=[factor, (end, bias, _trailing(m, channel))])]


def _trailing(m: Map, channel: int) -> Map:
    """The map without the axes in front of its channels: a scalar grows to a vector."""
    return m.each(lambda a: np.reshape(a, a.shape[channel:]))
