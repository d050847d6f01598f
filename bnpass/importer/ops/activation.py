"""Activations that are no row of ``bnpass.importer.activations`` alone: those with a choice."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from bnpass.importer.activations import ACTIVATIONS, Activation
from bnpass.importer.functions import activation
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import Handler, register_op
from bnpass.importer.values import Arg

SELU_ALPHA, SELU_GAMMA = 1.6732632423543772, 1.0507009873554805


def _row(row: Activation) -> Handler:
    def translate(op: ImportedNode) -> Arg:
        assert row.function is not None
        values = (op.attr(name, default) for name, default in row.attributes)
        return op.call(row.function, op.tensor(0), *values)

    return translate


for _activation in ACTIVATIONS:
    if _activation.function is not None:
        register_op(_activation.kind)(_row(_activation))


@register_op("PRelu")
def prelu(op: ImportedNode) -> Arg:
    """The slope keeps its ONNX shape, e.g. (C, 1, 1)."""
    return op.call(activation.prelu, op.tensor(0), op.weight(1))


@register_op("Selu")
def selu(op: ImportedNode) -> Arg:
    """torch's constants are ONNX's defaults; others need the formula."""
    alpha, gamma = op.attr("alpha", SELU_ALPHA), op.attr("gamma", SELU_GAMMA)
    if math.isclose(alpha, SELU_ALPHA, rel_tol=1e-6) and math.isclose(
        gamma, SELU_GAMMA, rel_tol=1e-6
    ):
        return op.call(F.selu, op.tensor(0))
    return op.call(activation.selu, op.tensor(0), alpha, gamma)


@register_op("HardSigmoid")
def hard_sigmoid(op: ImportedNode) -> Arg:
    """clip(alpha x + beta, 0, 1); torch's has alpha = 1/6, ONNX's default is 0.2."""
    alpha, beta = op.attr("alpha", 0.2), op.attr("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return op.call(F.hardsigmoid, op.tensor(0))
    return op.call(activation.hard_sigmoid, op.tensor(0), alpha, beta)


@register_op("Gelu")
def gelu(op: ImportedNode) -> Arg:
    """approximate is "none" (erf) or "tanh"."""
    return op.call(F.gelu, op.tensor(0), approximate=op.attr("approximate", "none"))


@register_op("Swish")
def swish(op: ImportedNode) -> Arg:
    """x * sigmoid(alpha x)."""
    alpha = op.attr("alpha", 1.0)
    if alpha == 1.0:
        return op.call(F.silu, op.tensor(0))
    return op.call(activation.swish, op.tensor(0), alpha)


@register_op("ThresholdedRelu")
def thresholded_relu(op: ImportedNode) -> Arg:
    """X above alpha, else 0."""
    return op.call(F.threshold, op.tensor(0), op.attr("alpha", 1.0), 0.0)


@register_op("Clip", until=10)
def clip_attributes(op: ImportedNode) -> Arg:
    """Bounds as attributes; ONNX's defaults are the largest floats."""
    low, high = op.attr("min"), op.attr("max")
    return _clamp(op, low, high)


@register_op("Clip", since=11)
def clip(op: ImportedNode) -> Arg:
    """Bounds as optional scalar inputs."""
    return _clamp(op, op.number(1), op.number(2))


def _clamp(op: ImportedNode, low: Arg, high: Arg) -> Arg:
    if low is None and high is None:
        return op.inputs[0]
    if any(isinstance(v, torch.fx.Node) for v in (low, high)):
        return op.call(activation.clip, op.tensor(0), low, high)
    dtype = op.dtype(0)
    if dtype in (torch.uint16, torch.uint32, torch.uint64):
        op.fail(f"Clip of {dtype}")
    return op.call(torch.clamp, op.tensor(0), low, high)


@register_op("Softmax", since=13)
def softmax(op: ImportedNode) -> Arg:
    """Along one axis, the last one by default."""
    return op.call(F.softmax, op.tensor(0), dim=op.attr("axis", -1))


@register_op("LogSoftmax", since=13)
def log_softmax(op: ImportedNode) -> Arg:
    """Along one axis, the last one by default."""
    return op.call(F.log_softmax, op.tensor(0), dim=op.attr("axis", -1))


@register_op("Hardmax", since=13)
def hardmax(op: ImportedNode) -> Arg:
    """1 at the first maximum of the axis, 0 elsewhere."""
    return op.call(activation.hardmax, op.tensor(0), op.attr("axis", -1))


@register_op("Softmax", until=12)
@register_op("LogSoftmax", until=12)
@register_op("Hardmax", until=12)
def coerced(op: ImportedNode) -> Arg:
    """Before opset 13: over ALL axes from ``axis`` on together (the input is coerced to 2-D)."""
    function = {
        "Softmax": activation.softmax_from,
        "LogSoftmax": activation.log_softmax_from,
        "Hardmax": activation.hardmax_from,
    }[op.node.op_type]
    return op.call(function, op.tensor(0), op.attr("axis", 1))
