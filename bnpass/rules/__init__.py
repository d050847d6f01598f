"""The table: how a per-channel affine map crosses each kind of operator, and when that is exact.

One row an operator, in ONNX's newest meaning; ``None`` on a side means that nothing crosses.
The rules of a family live in one file: ``elementwise``, ``structure`` (with ``reshape``),
``windows``, ``absorbers`` (with ``contraction``). Fold, insert and bias dropping all read this.
"""

from __future__ import annotations

from bnpass.rules import absorbers, elementwise, quantised, structure, windows
from bnpass.rules.base import MapRefusedError, Rule, RuleContext, Step

RULES: dict[str, Rule] = {
    # absorbers
    "Conv": absorbers.CONV,
    "ConvTranspose": absorbers.CONV,
    "Gemm": absorbers.CONTRACTION,
    "MatMul": absorbers.CONTRACTION,
    "Einsum": absorbers.CONTRACTION,
    "RNN": absorbers.RECURRENT,
    "LSTM": absorbers.RECURRENT,
    "GRU": absorbers.RECURRENT,
    "BatchNormalization": absorbers.BATCH_NORM,
    "InstanceNormalization": absorbers.CHANNEL_NORM,
    "GroupNormalization": absorbers.CHANNEL_NORM,
    "LayerNormalization": absorbers.LAYER_NORM,
    # quantised
    "DequantizeLinear": quantised.DEQUANTIZE,
    "QuantizeLinear": quantised.QUANTIZED,
    "DynamicQuantizeLinear": quantised.QUANTIZED,
    "MatMulInteger": quantised.QUANTIZED,
    "ConvInteger": quantised.QUANTIZED,
    "QLinearConv": quantised.QUANTIZED,
    "QLinearMatMul": quantised.QUANTIZED,
    # elementwise
    "Add": elementwise.SUM,
    "Sub": elementwise.SUM,
    "Sum": elementwise.SUM,
    "Mean": elementwise.SUM,
    "Mul": elementwise.PRODUCT,
    "Div": elementwise.PRODUCT,
    "Neg": elementwise.NEG,
    "Max": elementwise.EXTREMUM,
    "Min": elementwise.EXTREMUM,
    "Relu": elementwise.RECTIFIER,
    "LeakyRelu": elementwise.RECTIFIER,
    "PRelu": elementwise.RECTIFIER,
    "Identity": elementwise.IDENTITY,
    "Dropout": elementwise.IDENTITY,
    "Cast": elementwise.IDENTITY,
    # structure
    "Transpose": structure.TRANSPOSE,
    "Reshape": structure.RESHAPE,
    "Flatten": structure.RESHAPE,
    "Squeeze": structure.RESHAPE,
    "Unsqueeze": structure.RESHAPE,
    "DepthToSpace": structure.DEPTH,
    "SpaceToDepth": structure.DEPTH,
    "Expand": structure.EXPAND,
    "Tile": structure.TILE,
    "Concat": structure.CONCAT,
    "Split": structure.SPLIT,
    "Slice": structure.SLICE,
    "Gather": structure.GATHER,
    # windows
    "AveragePool": windows.POOL,
    "GlobalAveragePool": windows.POOL,
    "MaxPool": windows.POOL,
    "GlobalMaxPool": windows.POOL,
    "ReduceMean": windows.REDUCE,
    "ReduceSum": windows.REDUCE,
    "ReduceMax": windows.REDUCE,
    "ReduceMin": windows.REDUCE,
    "Resize": windows.RESIZE,
    "Upsample": windows.RESIZE,
    "Pad": windows.PAD,
}

__all__ = ["RULES", "MapRefusedError", "Rule", "RuleContext", "Step"]
