"""The numbers of a fold: an operator's new constants, in float64, from the maps that it takes in.

``output_map(op(input_map(x)))`` becomes ``op'(x)``. Pure functions of arrays; a frontend rounds the
results once, to the type of each weight.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.codes import Codes, mapped_codes, mapped_weight, rounded_codes
from bnpass.ir.edits import Rewrite
from bnpass.ir.graph import Constant, Op, stacked
from bnpass.ir.operators import operator
from bnpass.ir.scaled import LARGE, Scaled
from bnpass.rules.base import RuleContext
from bnpass.rules.contraction import aligned, contraction
from bnpass.rules.quantised import quantizer, scale_axis


@dataclass
class NewWeights:
    """What becomes of one operator.

    Attributes:
        constants: new float64 arrays by input index; an index beyond the inputs is a new input.
        scaled: large weights by input index, not multiplied out yet.
        attrs: attributes that change.
        add: what an Add behind the operator has to add, for MatMul and Einsum; None: nothing.
    """

    constants: dict[int, np.ndarray] = field(default_factory=dict)
    scaled: dict[int, Scaled] = field(default_factory=dict)
    attrs: dict[str, float] = field(default_factory=dict)
    add: np.ndarray | None = None


def multiplied_out(new: NewWeights) -> NewWeights:
    """The same with every weight as a float64 array."""
    whole = {i: scaled.rounded(np.dtype(np.float64)) for i, scaled in new.scaled.items()}
    return NewWeights({**whole, **new.constants}, {}, new.attrs, new.add)


def new_weights(rewrite: Rewrite, context: RuleContext) -> NewWeights:
    """All that a rewrite changes of its operator."""
    rewriter = _REWRITERS.get(rewrite.op.kind)
    new = NewWeights() if rewriter is None else rewriter(rewrite, context)
    for index, m in rewrite.constants.items():
        left_out = not rewrite.op.input(index)
        if index not in (*new.constants, *new.scaled) and (m.has_shift or not left_out):
            new.constants[index] = _mapped(rewrite.op, index, m, context)
    return new


def _load(op: Op, index: int, context: RuleContext) -> np.ndarray | None:
    constant = context.constant(op.input(index))
    return None if constant is None else constant.float64()  # a copy: it may be changed


def _must(op: Op, index: int, context: RuleContext) -> np.ndarray:
    array = _load(op, index, context)
    assert array is not None
    return array


def _mapped(op: Op, index: int, m: Map, context: RuleContext) -> np.ndarray:
    """scale*c + shift; a constant keeps its shape where the result allows."""
    old = _load(op, index, context)
    if old is None:
        return np.asarray(m.scale * 0.0 + m.shift)
    return keep_shape(m.scale * old + m.shift, old.shape)


def keep_shape(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Drop leading axes of size 1 that broadcasting has put in front of ``shape``."""
    extra = array.ndim - len(shape)
    if extra > 0 and array.shape[:extra] == (1,) * extra and array.shape[extra:] == shape:
        return array.reshape(shape)
    return array


def _vector(m: Map | None, axis: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    if m is None:
        return np.ones(n), np.zeros(n)
    found = m.vectors(axis, n)
    assert found is not None
    return found


# --- Conv, ConvTranspose


def _conv(rewrite: Rewrite, context: RuleContext) -> NewWeights:
    if rewrite.input_map is None and rewrite.output_map is None:
        return NewWeights()
    new = new_kernels([rewrite], context)
    new.constants = {index: arrays[0] for index, arrays in new.constants.items()}
    if not rewrite.op.input(2) and not np.any(new.constants[2]):
        del new.constants[2]
    return new


def kernel_form(rewrite: Rewrite, context: RuleContext) -> Hashable | None:
    """Equal for convolutions that :func:`new_kernels` takes together; None: take it by itself."""
    op, after = rewrite.op, rewrite.output_map
    if not operator(op.kind).convolution or rewrite.input_map or rewrite.constants or after is None:
        return None
    weight, bias = (context.constant(op.input(i)) for i in (1, 2))
    if weight is None or bias is None:
        return None
    arrays = (weight.shape, weight.dtype, bias.shape, bias.dtype)
    return (op.kind, op.attrs.get("group", 1), *arrays, after.has_scale, after.shape)


def new_kernels(rewrites: Sequence[Rewrite], context: RuleContext) -> NewWeights:
    """New constants (n, *shape) of n convolutions of one form.

    W (out, in/group, ...), transposed (in, out/group, ...); one group behind another.
    """
    op, n = rewrites[0].op, len(rewrites)
    befores, afters = [r.input_map for r in rewrites], [r.output_map for r in rewrites]
    weights = [_constant(r.op, 1, context) for r in rewrites]
    group, (rows, columns, *window) = int(op.attrs.get("group", 1)), weights[0].shape
    shape = (n, group, rows // group, columns, math.prod(window))
    outer, inner = (3, 2) if op.kind == "ConvTranspose" else (2, 3)
    factors, shift = [], np.zeros((n, 1))
    if befores[0] is not None:
        scale, t = _vectors(befores, group * shape[inner])
        factors.append(scale.reshape(_spread(shape, inner)))
        if any(m is not None and m.has_shift for m in befores):
            kernel = stacked(weights).reshape(shape)
            shift = (kernel * t.reshape(_spread(shape, inner))).sum((inner, 4)).reshape(n, -1)
    bias = (
        shift + stacked([_constant(r.op, 2, context) for r in rewrites]) if op.input(2) else shift
    )
    if afters[0] is not None:
        s_out, t_out = _vectors(afters, group * shape[outer])
        factors.append(s_out.reshape(_spread(shape, outer)))
        bias = s_out * bias + t_out
    new = NewWeights({2: np.broadcast_to(bias, (n, group * shape[outer]))})
    if not _scales(befores[0]) and not _scales(afters[0]):
        return new
    if n == 1 and math.prod(shape) >= LARGE:
        new.scaled[1] = _scaled_kernel(weights[0], shape[1:], [f[0] for f in factors])
    else:
        new.constants[1] = stacked(weights)
        kernel = new.constants[1].reshape(shape)
        for factor in factors:
            kernel *= factor
    return new


def _scaled_kernel(
    weight: Constant, shape: tuple[int, ...], factors: Sequence[np.ndarray]
) -> Scaled:
    """A kernel of ``shape`` (group, rows, columns, window) times factors of its rank."""
    group, rows, columns, window = shape
    full = [np.broadcast_to(f, (group, rows, *f.shape[2:])) for f in factors]
    flat = [f.reshape(group * rows, *f.shape[2:]) for f in full]
    return Scaled(weight, (group * rows, columns, window), tuple(flat))


def _constant(op: Op, index: int, context: RuleContext) -> Constant:
    constant = context.constant(op.input(index))
    assert constant is not None
    return constant


def _vectors(maps: Sequence[Map | None], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift), both (n, size), of maps that vary along the channels alone."""
    pairs = [_vector(m, 1, size) for m in maps]
    return np.stack([scale for scale, _ in pairs]), np.stack([shift for _, shift in pairs])


def _scales(m: Map | None) -> bool:
    return m is not None and m.has_scale


def _spread(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Shape of channels along the group axis and one other of kernels (n, group, ..., window)."""
    return (*shape[:2], *(n if i == axis else 1 for i, n in enumerate(shape[2:], 2)))


# --- Gemm, MatMul, Einsum


def _contraction(rewrite: Rewrite, context: RuleContext) -> NewWeights:
    op = rewrite.op
    if rewrite.input_map is None and rewrite.output_map is None:
        return NewWeights()
    c = contraction(op, context)
    rank = len(c.output)
    factors, shift = [], np.zeros((1,) * rank)
    if rewrite.input_map is not None:
        factors.append(aligned(rewrite.input_map.scale, c.dynamic, c.constant))
        if rewrite.input_map.has_shift:
            t = aligned(rewrite.input_map.shift, c.dynamic, c.constant)
            gone = tuple(i for i, letter in enumerate(c.constant) if letter not in c.output)
            kept = "".join(letter for letter in c.constant if letter in c.output)
            shift = aligned((_must(op, c.index, context) * t).sum(gone), kept, c.output)
    after = rewrite.output_map or Map.identity(rank)
    new = NewWeights()
    if after.has_scale:
        factors.append(aligned(after.scale, c.output, c.constant))
    if factors:
        constant = _constant(op, c.index, context)
        if math.prod(constant.shape) >= LARGE and len(constant.shape) > 1:
            new.scaled[c.index] = Scaled(constant, constant.shape, tuple(factors))
        else:
            new.constants[c.index] = math.prod(factors, start=constant.float64())
    if op.kind == "Gemm":
        _gemm_bias(op, shift, after, new, context)
    else:
        total = after.scale * shift + after.shift
        new.add = total if total.any() else None
    return new


def _gemm_bias(
    op: Op, shift: np.ndarray, after: Map, new: NewWeights, context: RuleContext
) -> None:
    """Y = alpha*A*B + beta*C: what is added enters C, divided by beta (a beta of 0 becomes 1)."""
    alpha, beta = float(op.attrs.get("alpha", 1.0)), float(op.attrs.get("beta", 1.0))
    old = _load(op, 2, context)
    added = alpha * shift + (0.0 if old is None else beta * old)
    total = after.scale * added + after.shift
    if old is None and not total.any():
        return
    if beta == 0.0 or old is None:
        new.attrs["beta"] = beta = 1.0
    shape = old.shape if old is not None else total.shape[-1:]
    new.constants[2] = keep_shape(total / beta, shape if len(shape) > 0 else total.shape[-1:])


# --- recurrent layers, BatchNormalization


def _recurrent(rewrite: Rewrite, context: RuleContext) -> NewWeights:
    """W (directions, gates*hidden, input); B (directions, 2*gates*hidden), its first half Wb."""
    op = rewrite.op
    if rewrite.input_map is None:
        return NewWeights()
    weight = _must(op, 1, context)
    scale, shift = _vector(rewrite.input_map, rewrite.input_map.rank - 1, weight.shape[2])
    new = NewWeights(constants={1: weight * scale})
    added = weight @ shift
    if added.any():
        old = _load(op, 3, context)
        bias = np.zeros((weight.shape[0], 2 * weight.shape[1])) if old is None else old.copy()
        bias[:, : weight.shape[1]] += added
        new.constants[3] = bias
    return new


def _taken_in(rewrite: Rewrite, index: int, context: RuleContext) -> np.ndarray:
    """A parameter, the map that it has taken in applied."""
    m = rewrite.constants.get(index)
    if m is None:
        return _must(rewrite.op, index, context)
    return _mapped(rewrite.op, index, m, context)


def _batch_norm(rewrite: Rewrite, context: RuleContext) -> NewWeights:
    """gamma*(s*x + t - mean)/std + beta; a shift alone is taken off the mean."""
    if rewrite.input_map is None:
        return NewWeights()
    op = rewrite.op
    gamma, beta, mean, var = (_taken_in(rewrite, i, context) for i in (1, 2, 3, 4))
    scale, shift = _vector(rewrite.input_map, 1, gamma.shape[0])
    if not rewrite.input_map.has_scale:
        return NewWeights(constants={3: mean - shift})
    std = np.sqrt(var + float(op.attrs.get("epsilon", 1e-5)))
    return NewWeights(
        constants={1: gamma * scale, 2: beta + gamma / std * (mean * (scale - 1) + shift)}
    )


def _shifted(rewrite: Rewrite, _: RuleContext) -> NewWeights:
    """A product that scales the sums of a quantised layer: a shift behind it is an Add."""
    after = rewrite.output_map
    return NewWeights(add=after.shift if after is not None and after.has_shift else None)


# --- quantised weights


def _codes(op: Op, context: RuleContext) -> Codes:
    """The weight that an operator dequantises, or quantises."""
    source = op if op.kind == "QuantizeLinear" else quantizer(op, context)
    held = context.constant(op.input(2))
    weight = (source or op).inputs[0]
    constant = context.constant(weight)
    assert constant is not None
    kind = constant.dtype if source is None else held.dtype if held is not None else "uint8"
    rank = len(constant.shape)
    axis = scale_axis(op, rank)
    scale, zero = (_along(context.current(op, i), axis, rank) for i in (1, 2))
    like = Codes(constant.float64(), scale, zero, np.dtype(kind), axis)
    if source is None:
        return like
    return replace(like, codes=rounded_codes(like.codes, like, np.dtype(constant.dtype)))


def _along(array: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """A number, or one for each entry along an axis, as an array of some rank."""
    shape = [1] * rank
    if array.size > 1:
        shape[axis] = array.size
    return array.reshape(shape)


def _quantised(rewrite: Rewrite, context: RuleContext) -> NewWeights:
    """Codes, scale and zero point; in front of a QuantizeLinear the weight instead of its codes."""
    op, m = rewrite.op, rewrite.output_map
    if m is None:
        return NewWeights()
    held = context.constant(op.inputs[1])
    assert held is not None
    narrow = np.dtype(held.dtype)
    old = _codes(op, context)
    new = mapped_codes(old, m.compact(), narrow)
    constants = {1: _flat(new.scale, held.shape)}
    if op.input(2) or new.zero.any():
        constants[2] = _flat(np.broadcast_to(new.zero, new.scale.shape), held.shape)
    if op.kind == "QuantizeLinear":
        constants[0] = mapped_weight(_must(op, 0, context), new, m, narrow)
    elif quantizer(op, context) is None:
        constants[0] = new.codes
    return NewWeights(constants, attrs={"axis": new.axis} if new.scale.size > 1 else {})


def _flat(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One number as it was stored, more of them as a vector."""
    return array.reshape(shape if array.size == math.prod(shape) else -1)


_REWRITERS = {
    "DequantizeLinear": _quantised,
    "QuantizeLinear": _quantised,
    "Mul": _shifted,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _contraction,
    "MatMul": _contraction,
    "Einsum": _contraction,
    "RNN": _recurrent,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "BatchNormalization": _batch_norm,
}
