"""Operators with constant weights that take a map in: here a fold ends.

The numbers are made in ``bnpass.ir.weights``; a rule only says whether and along which axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Constant, Op
from bnpass.rules import quantised
from bnpass.rules.base import (
    MapRefusedError,
    Rule,
    RuleContext,
    Step,
    data_only,
    only,
    refuse_backward,
    size,
)
from bnpass.rules.contraction import Contraction, aligned, contraction
from bnpass.rules.elementwise import FLOATS


def weight(op: Op, index: int, context: RuleContext) -> Constant:
    """A constant floating-point weight, or MapRefusedError."""
    name = op.input(index)
    constant = context.constant(name)
    if constant is None:
        why = "quantised" if quantised.is_weight(name, context) else context.pinned(name)
        raise MapRefusedError(f"its weight {name!r} is {why}", op)
    if constant.dtype not in FLOATS:
        raise MapRefusedError(f"its weight {name!r} is of type {constant.dtype}", op)
    return constant


def bias(op: Op, index: int, context: RuleContext) -> Constant | None:
    """A constant bias or None where it is left out; MapRefusedError when it is computed."""
    return weight(op, index, context) if op.input(index) else None


# --- Conv, ConvTranspose


def _channels(op: Op, context: RuleContext, side: int) -> int:
    """Input (0) or output (1) channels: W is (out, in/group, ...), transposed (in, out/group)."""
    name, group = op.inputs[1], int(op.attrs.get("group", 1))
    if quantised.is_weight(name, context):
        shape = tuple(size(d, op, "its weight") for d in context.shape(name))
    else:
        shape = weight(op, 1, context).shape
    if op.kind == "Conv":
        return shape[0] if side else shape[1] * group
    return shape[1] * group if side else shape[0]


def _vectors(op: Op, m: Map, axis: int, n: int) -> Map:
    if not m.varies_along(axis) or m.shape[axis] not in (1, n):
        raise MapRefusedError("the map does not vary along its channels alone", op)
    return m


def conv_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """W and the bias take a map in along the output channels."""
    n = _channels(op, context, 1)
    m = _vectors(op, only(asks), 1, n)
    if quantised.is_weight(op.inputs[1], context):
        return [_conv_of_codes(op, m, n, context)]
    bias(op, 2, context)
    return [Step(output_map=m)]


def _conv_of_codes(op: Op, m: Map, n: int, context: RuleContext) -> Step:
    """The scale goes to what dequantises the weight, both to the bias."""
    vectors = m.vectors(1, n)
    assert vectors is not None
    axis, scale = 0, vectors[0]
    if op.kind == "ConvTranspose":
        groups = scale.reshape(int(op.attrs.get("group", 1)), -1)
        if (groups != groups[0]).any():
            raise MapRefusedError("its quantised weight has no scale for each output channel", op)
        axis, scale = 1, groups[0]
    rank = context.rank(op.inputs[1])
    asked = Map.along(axis, rank, scale, np.zeros(1))
    return _with_bias(op, Step(asks={1: asked}), Map(*vectors), context)


def _with_bias(op: Op, step: Step, m: Map, context: RuleContext) -> Step:
    """A bias in input 2 takes a map in, whether it is quantised or not; a new one where it is not.

    One that is quantised keeps its scale as large as the input's times the weight's.
    """
    if quantised.is_weight(op.input(2), context):
        step.asks[2] = m
    else:
        bias(op, 2, context)
        step.constants[2] = m
    return step


def conv_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """W takes a scale in along the input channels; a shift only where no zero is padded in."""
    m = _vectors(op, data_only(op, carried), 1, _channels(op, context, 0))
    bias(op, 2, context)
    if m.has_shift:
        if op.kind == "Conv":
            _check_unpadded(op)
        else:
            _check_covered(op, context)
    return [Step(input_map=m)]


def _check_unpadded(op: Op) -> None:
    pads = op.attrs.get("pads", ())
    if pads is None or any(pads):
        raise MapRefusedError("a shift cannot pass its zero padding", op)


def _check_covered(op: Op, context: RuleContext) -> None:
    """Every output entry of a transposed convolution must see all of the kernel."""
    kernel = weight(op, 1, context).shape[2:]
    pads = op.attrs.get("pads", (0,) * 2 * len(kernel))
    dilations = op.attrs.get("dilations") or (1,) * len(kernel)
    plain = not any(s != 1 for s in op.attrs.get("strides") or ())
    plain = plain and not any(op.attrs.get("output_padding") or ())
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    if not plain or pads is None or any(p < r for p, r in zip(pads, reach * 2, strict=True)):
        raise MapRefusedError("a shift cannot pass a transposed convolution with borders", op)


# --- Gemm, MatMul, Einsum


def _split_letters(c: Contraction, m: Map, op: Op) -> bool:
    """True: the constant operand takes the map; False: the other one does; else MapRefusedError."""
    varied = {c.output[a] for a in m.axes}
    if varied <= set(c.constant):
        return True
    if varied <= set(c.dynamic):
        return False
    raise MapRefusedError("the map varies along axes of both operands", op)


def _adds(op: Op, context: RuleContext) -> bool:
    """Whether the product is not all: a scale along its rows would miss what is added."""
    return (op.kind == "Gemm" and bool(op.input(2))) or context.shifted(op)


def _gemm_bias(op: Op, context: RuleContext) -> None:
    if op.kind == "Gemm" and op.input(2):
        weight(op, 2, context)


def contraction_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """A free axis of the constant operand takes the map in; one of the other passes a scale."""
    m = only(asks)
    c = contraction(op, context)
    if quantised.is_weight(op.inputs[c.index], context):
        return [_product_of_codes(op, c, m, context)]
    weight(op, c.index, context)
    if _split_letters(c, m, op):
        _gemm_bias(op, context)
        return [Step(output_map=m, adds=int(m.has_shift and op.kind != "Gemm"))]
    if m.has_shift or _adds(op, context):
        raise MapRefusedError("a shift cannot pass along the rows of its other operand", op)
    return [Step(asks={1 - c.index: c.to_dynamic(m)})]


def _product_of_codes(op: Op, c: Contraction, m: Map, context: RuleContext) -> Step:
    """The scale goes to what dequantises the weight, the shift to C or to an Add behind."""
    if not _split_letters(c, m, op):
        raise MapRefusedError("the map varies along axes of its operand that is not quantised", op)
    step = Step(asks={c.index: Map.identity(len(c.constant))})
    scale = aligned(m.scale, c.output, c.constant)
    step.asks[c.index] = Map(scale, np.zeros((1,) * scale.ndim))
    if op.kind != "Gemm":
        step.output_map = m.shift_only() if m.has_shift else None
        step.adds = int(m.has_shift)
        return step
    beta = float(op.attrs.get("beta", 1.0))
    if beta == 0:
        raise MapRefusedError("its C is multiplied by 0", op)
    n = size(context.shape(op.outputs[0])[-1], op, "its output")
    vectors = m.vectors(m.rank - 1, n)
    assert vectors is not None
    return _with_bias(op, step, Map(vectors[0], vectors[1] / beta), context)


def contraction_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """The contracted axis takes the map in; a free axis of this operand passes a scale."""
    c = contraction(op, context)
    m = data_only(op, carried, 1 - c.index)
    weight(op, c.index, context)
    _gemm_bias(op, context)
    varied = {c.dynamic[a] for a in m.axes}
    if varied <= set(c.constant):
        missing = set(c.dynamic) - set(c.constant) - set(c.output)
        if m.has_shift and missing:
            raise MapRefusedError("it sums an axis that its constant operand does not have", op)
        return [Step(input_map=m, adds=int(m.has_shift and op.kind != "Gemm"))]
    if m.has_shift or not varied <= set(c.output) or _adds(op, context):
        raise MapRefusedError("a shift cannot pass along the rows of its other operand", op)
    return [Step(gives={0: c.to_output(m)})]


# --- recurrent layers


def recurrent_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """X (..., input): W (directions, gates*hidden, input) and Wb take the map in."""
    m = data_only(op, carried)
    n = weight(op, 1, context).shape[2]
    bias(op, 3, context)
    return [Step(input_map=_vectors(op, m, m.rank - 1, n))]


# --- normalisations


def _affine_inputs(op: Op, m: Map, shape: tuple[int, ...], context: RuleContext) -> list[Step]:
    """scale *= s, bias = s*bias + t, where the map's arrays broadcast to the parameters' shape."""
    bias(op, 2, context)
    if op.input(2):
        return [Step(constants={1: m.scale_only(), 2: m})]
    full = Map(*(np.broadcast_to(a, shape) for a in (m.scale, m.shift)))  # of zeros so far
    return [Step(constants={1: m.scale_only(), 2: full})]


def channel_norm_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """InstanceNormalization, GroupNormalization, BatchNormalization: along the channels."""
    m = only(asks)
    shape = weight(op, 1, context).shape
    dims = context.shape(op.inputs[0])
    if len(dims) > 1 and isinstance(dims[1], int) and dims[1] != shape[0]:
        raise MapRefusedError("its scale is one per group, not per channel", op)
    vectors = _vectors(op, m, 1, shape[0]).vectors(1, shape[0])
    assert vectors is not None
    return _affine_inputs(op, Map(*vectors), shape, context)


def layer_norm_backward(op: Op, asks: Sequence[Map | None], context: RuleContext) -> list[Step]:
    """LayerNormalization: along the axes that it normalises."""
    m = only(asks)
    shape = weight(op, 1, context).shape
    lead = m.rank - len(shape)
    if any(axis < lead for axis in m.axes):
        raise MapRefusedError("the map varies along an axis that it does not normalise", op)
    return _affine_inputs(op, m.each(lambda a: a.reshape(a.shape[lead:])), shape, context)


def batch_norm_forward(op: Op, carried: dict[int, Map], context: RuleContext) -> list[Step]:
    """A BatchNorm takes a map in; in training mode only a shift, which its mean takes away."""
    m = data_only(op, carried)
    n = weight(op, 1, context).shape[0]
    for index in (2, 3, 4):
        weight(op, index, context)
    if not op.attrs.get("spatial", 1):
        raise MapRefusedError("it normalises every entry by itself (spatial=0)", op)
    if op.attrs.get("training"):
        raise MapRefusedError("it normalises with batch statistics (training_mode=1)", op)
    return [Step(input_map=_vectors(op, m, 1, n))]


CONV = Rule(conv_backward, conv_forward)
CONTRACTION = Rule(contraction_backward, contraction_forward)
RECURRENT = Rule(refuse_backward("its state mixes the channels"), recurrent_forward)
CHANNEL_NORM = Rule(
    channel_norm_backward,
    lambda op, carried, context: _no_forward(op),
)
LAYER_NORM = Rule(layer_norm_backward, lambda op, carried, context: _no_forward(op))
BATCH_NORM = Rule(channel_norm_backward, batch_norm_forward)


def _no_forward(op: Op) -> list[Step]:
    raise MapRefusedError("it normalises with the statistics of its input", op)
