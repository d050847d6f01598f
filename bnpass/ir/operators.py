"""The table: one row an operator, with what it is and how a map crosses it.

An operator that is not here lets no map pass and is nothing in particular: that is safe. Whoever
wants it to be more adds a row, and nothing else: passes and frontends ask the row.

The rules of a family live in one file of ``bnpass.rules``: ``elementwise``, ``structure`` (with
``reshape``), ``windows``, ``absorbers`` (with ``contraction``), ``quantised``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnpass.ir import formulas
from bnpass.ir.formulas import Formula, plain
from bnpass.rules import absorbers, elementwise, quantised, structure, windows
from bnpass.rules.base import Rule


@dataclass(frozen=True)
class Operator:
    """One row, in ONNX's newest meaning of the operator.

    Attributes:
        rule: how a map crosses it; None: it does not.
        layer: it has weights that take a BatchNorm in, and is what is normalised.
        weights: the inputs that may hold them.
        bias: the input that is added to its result and may be left out; None: there is none.
        convolution: its channels are axis 1, whatever its number of spatial axes.
        recurrent: a layer with nonlinearities inside.
        quantised: it works with integers that stand for numbers.
        norm: it normalises by statistics.
        nonlinearity: it is one by itself, in front of which a BatchNorm belongs.
        bounded: its result is bounded, so that it may serve as a gate.
        bends: a composite activation has at least one such operator.
        elementwise: entries of its result come of the entries at the same place (broadcast) alone.
        formula: elementwise: what it computes.
        sum: its operands add up, with a factor each; they may share a shift.
        product: its operands multiply.
        joins: all of its inputs hold data; otherwise the first one alone does.
        affine: with a constant operand, or by itself, it may be a map.
        repeats: it hands its data on entry by entry at inference: Identity, Dropout, Cast.
        reshapes: the same entries in the same order, in another shape.
        permutes: the same entries in another order.
        copies: entries of its result are copies or means of entries that it read.
        reads_part: it may read a part of its data alone.
        norm_in_front: a BatchNorm stands in front of it, not behind: the statistics behind differ
            in training, or count copies and padding.
        keeps_rank: its result has as many axes as its first input.
        sees_shape: it reads the shape of its data, and no number.
        random: it draws numbers: no two runs need agree.
    """

    rule: Rule | None = None
    layer: bool = False
    weights: tuple[int, ...] = ()
    bias: int | None = None
    convolution: bool = False
    recurrent: bool = False
    quantised: bool = False
    norm: bool = False
    nonlinearity: bool = False
    bounded: bool = False
    bends: bool = False
    elementwise: bool = False
    formula: Formula | None = None
    sum: bool = False
    product: bool = False
    joins: bool = False
    affine: bool = False
    repeats: bool = False
    reshapes: bool = False
    permutes: bool = False
    copies: bool = False
    reads_part: bool = False
    norm_in_front: bool = False
    keeps_rank: bool = False
    sees_shape: bool = False
    random: bool = False

    @property
    def bare_product(self) -> bool:
        """A layer without a bias of its own: a shift costs an Add behind it."""
        return self.layer and self.bias is None and not self.reads_part

    @property
    def multiplies(self) -> bool:
        """A layer whose weights multiply what it reads; a table's do not."""
        return (self.layer and not self.reads_part) or self.recurrent

    @property
    def moves(self) -> bool:
        """It arranges entries anew and does nothing else."""
        return self.reshapes or self.permutes

    @property
    def passes_on(self) -> bool:
        """Every entry of its result is one that it read, or a mean of some."""
        return self.repeats or self.moves or self.copies


def _convolution() -> Operator:
    return Operator(absorbers.CONV, layer=True, weights=(1,), bias=2, convolution=True)


def _product_layer(*, bias: int | None = None) -> Operator:
    return Operator(absorbers.CONTRACTION, layer=True, weights=(0, 1), bias=bias)


def _recurrent() -> Operator:
    return Operator(absorbers.RECURRENT, recurrent=True, weights=(1, 2))


def _norm(rule: Rule, *, affine: bool = False) -> Operator:
    return Operator(rule, norm=True, keeps_rank=True, affine=affine)


def _quantised(rule: Rule = quantised.QUANTIZED) -> Operator:
    return Operator(rule, quantised=True)


def _nonlinearity(
    rule: Rule | None = None, formula: Formula | None = None, *, bounded: bool = False
) -> Operator:
    """A nonlinearity of one value; with a formula it may be a part of a composite, too."""
    return Operator(
        rule,
        nonlinearity=True,
        bounded=bounded,
        bends=formula is not None,
        elementwise=True,
        formula=formula,
        keeps_rank=True,
    )


def _extremum(formula: Formula) -> Operator:
    """A nonlinearity with one operand that is computed, or with several (maxout)."""
    return Operator(
        elementwise.EXTREMUM,
        nonlinearity=True,
        bounded=True,
        bends=True,
        elementwise=True,
        formula=formula,
    )


def _sum(formula: Formula | None = None, *, affine: bool = False) -> Operator:
    return Operator(
        elementwise.SUM, sum=True, joins=True, elementwise=True, formula=formula, affine=affine
    )


def _product(formula: Formula) -> Operator:
    return Operator(
        elementwise.PRODUCT, product=True, elementwise=True, formula=formula, affine=True
    )


def _function(function: Callable[..., np.ndarray], *, bends: bool = False) -> Operator:
    """An elementwise function that is no nonlinearity of its own but may be a part of one."""
    return Operator(elementwise=True, formula=plain(function), bends=bends)


def _repeats(formula: Formula | None = None, *, norm_in_front: bool = True) -> Operator:
    """What hands its data on entry by entry."""
    return Operator(elementwise.IDENTITY, elementwise=True, formula=formula, repeats=True,
                    norm_in_front=norm_in_front)  # fmt: skip


def _pool(rule: Rule) -> Operator:
    return Operator(rule, keeps_rank=True)


def _reshape() -> Operator:
    return Operator(structure.RESHAPE, reshapes=True)


_NO_MORE_THAN_ELEMENTWISE = (
    "Acos", "Acosh", "And", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Ceil", "Cos", "Cosh", "Equal", "Floor", "Greater",
    "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Mod", "Not", "Or", "Round", "Sign",
    "Sin", "Sinh", "Tan", "Where", "Xor",
)  # fmt: skip

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
           "RandomUniformLike")  # fmt: skip

OPERATORS: dict[str, Operator] = {
    # layers
    "Conv": _convolution(),
    "ConvTranspose": _convolution(),
    "Gemm": _product_layer(bias=2),
    "MatMul": _product_layer(),
    "Einsum": _product_layer(),
    "Gather": Operator(structure.GATHER, layer=True, weights=(0,), reads_part=True),
    "RNN": _recurrent(),
    "LSTM": _recurrent(),
    "GRU": _recurrent(),
    # norms
    "BatchNormalization": _norm(absorbers.BATCH_NORM, affine=True),
    "InstanceNormalization": _norm(absorbers.CHANNEL_NORM),
    "GroupNormalization": _norm(absorbers.CHANNEL_NORM),
    "LayerNormalization": _norm(absorbers.LAYER_NORM),
    # quantised
    "DequantizeLinear": _quantised(quantised.DEQUANTIZE),
    "QuantizeLinear": _quantised(),
    "DynamicQuantizeLinear": _quantised(),
    "MatMulInteger": _quantised(),
    "ConvInteger": _quantised(),
    "QLinearConv": _quantised(),
    "QLinearMatMul": _quantised(),
    # nonlinearities; Softmax is none: it makes probabilities
    "Relu": _nonlinearity(elementwise.RECTIFIER, formulas.RELU),
    "LeakyRelu": _nonlinearity(elementwise.RECTIFIER),
    "PRelu": _nonlinearity(elementwise.RECTIFIER),
    "Sigmoid": _nonlinearity(None, formulas.SIGMOID, bounded=True),
    "Tanh": _nonlinearity(None, plain(np.tanh), bounded=True),
    "HardSigmoid": _nonlinearity(None, formulas.hard_sigmoid, bounded=True),
    "Clip": _nonlinearity(None, formulas.CLIP, bounded=True),
    "Softsign": _nonlinearity(bounded=True),
    "Softplus": _nonlinearity(None, formulas.SOFTPLUS),
    "Elu": _nonlinearity(),
    "Selu": _nonlinearity(),
    "Celu": _nonlinearity(),
    "HardSwish": _nonlinearity(),
    "Gelu": _nonlinearity(),
    "Mish": _nonlinearity(),
    "Swish": _nonlinearity(),
    "ThresholdedRelu": _nonlinearity(),
    "Shrink": _nonlinearity(),
    "com.microsoft::Gelu": _nonlinearity(),
    "com.microsoft::FastGelu": _nonlinearity(),
    "com.microsoft::QuickGelu": _nonlinearity(),
    "Max": _extremum(formulas.MAX),
    "Min": _extremum(formulas.MIN),
    # arithmetic
    "Add": _sum(plain(np.add), affine=True),
    "Sub": _sum(plain(np.subtract), affine=True),
    "Sum": _sum(),
    "Mean": _sum(),
    "Mul": _product(plain(np.multiply)),
    "Div": _product(plain(np.divide)),
    "Neg": Operator(elementwise.NEG, elementwise=True, formula=plain(np.negative), affine=True),
    "Erf": Operator(elementwise=True, formula=formulas.ERF, bends=True),
    "Exp": _function(np.exp, bends=True),
    "Pow": _function(np.power),
    "Sqrt": _function(np.sqrt),
    "Log": _function(np.log),
    "Abs": _function(np.abs),
    "Reciprocal": _function(np.reciprocal),
    "Identity": _repeats(formulas.SAME, norm_in_front=False),
    "Cast": _repeats(formulas.SAME),
    "Dropout": _repeats(),
    **dict.fromkeys(_NO_MORE_THAN_ELEMENTWISE, Operator(elementwise=True)),
    # random numbers
    **dict.fromkeys(_RANDOM, Operator(random=True)),
    # shapes
    "Shape": Operator(sees_shape=True),
    "Size": Operator(sees_shape=True),
    # structure
    "Transpose": Operator(structure.TRANSPOSE, permutes=True),
    "Reshape": _reshape(),
    "Flatten": _reshape(),
    "Squeeze": _reshape(),
    "Unsqueeze": _reshape(),
    "DepthToSpace": Operator(structure.DEPTH),
    "SpaceToDepth": Operator(structure.DEPTH),
    "Expand": Operator(structure.EXPAND, copies=True, norm_in_front=True),
    "Tile": Operator(structure.TILE, copies=True, norm_in_front=True),
    "Concat": Operator(structure.CONCAT, joins=True),
    "Split": Operator(structure.SPLIT, reads_part=True),
    "Slice": Operator(structure.SLICE, reads_part=True),
    # windows
    "AveragePool": _pool(windows.POOL),
    "GlobalAveragePool": _pool(windows.POOL),
    "MaxPool": _pool(windows.POOL),
    "GlobalMaxPool": _pool(windows.POOL),
    "ReduceMean": Operator(windows.REDUCE),
    "ReduceSum": Operator(windows.REDUCE),
    "ReduceMax": Operator(windows.REDUCE),
    "ReduceMin": Operator(windows.REDUCE),
    "Resize": Operator(windows.RESIZE, copies=True, norm_in_front=True),
    "Upsample": Operator(windows.RESIZE, copies=True, norm_in_front=True),
    "Pad": Operator(windows.PAD, norm_in_front=True),
}

_UNKNOWN = Operator()


def operator(kind: str) -> Operator:
    """The row of an operator; one without a row lets nothing pass."""
    return OPERATORS.get(kind, _UNKNOWN)


def kinds(chosen: Callable[[Operator], bool]) -> frozenset[str]:
    """The operators with some trait."""
    return frozenset(kind for kind, row in OPERATORS.items() if chosen(row))


RULES: dict[str, Rule] = {kind: row.rule for kind, row in OPERATORS.items() if row.rule}
"""The rules alone."""

RECURRENT = kinds(lambda row: row.recurrent)
"""Layers with nonlinearities inside; normalised is the input's contribution, once it is split."""
