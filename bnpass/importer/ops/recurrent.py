"""LSTM, GRU and RNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from bnpass.importer.functions import recurrent as functions
from bnpass.importer.functions import shape
from bnpass.importer.functions.common import host_tensor
from bnpass.importer.gates import BIAS, USUAL, WEIGHTS, arranged, fits_kernel, order_of
from bnpass.importer.node import ImportedNode
from bnpass.importer.ops.rows import parameters_in_order
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg, Const, Traced

_CONTRIBUTES = frozenset({"MatMul", "Add", "BatchNormalization", "Transpose"})
"""What makes a contribution: the product, its bias, a BatchNorm, the way back from its axes."""


@register_op("LSTM")
@register_op("GRU")
@register_op("RNN")
def recurrent(op: ImportedNode) -> Arg:
    """By torch's kernels, with the gates in its order, where it has them; else by a loop."""
    kind, direction = op.node.op_type, op.attr("direction", "forward")
    lstm, layout = kind == "LSTM", op.attr("layout", 0)
    activations = _activations(op, kind, 2 if direction == "bidirectional" else 1)
    if fits_kernel(op.node):
        weights = _trained_part(op, [_in_order(op, i) for i in (*WEIGHTS, BIAS)])
        states = [_state(op, i) for i in ((5, 6) if lstm else (5,))]
        triple = op.call(
            functions.by_kernel, op.tensor(0), *weights, *(*states, None)[:2], kind, direction,
            layout, activations[0][0],
        )  # fmt: skip
        return op.items(triple, 3 if lstm else 2)
    lengths, h0, c0 = (op.tensor(i) if op.has(i) else None for i in (4, 5, 6))
    weights = _trained_part(op, [_weight(op, i) for i in (*WEIGHTS, BIAS)])
    triple = op.call(
        functions.by_loop, op.tensor(0), *weights, lengths, h0,
        c0, op.weight(7), kind, direction, layout, activations, op.attr("clip"),
        bool(op.attr("linear_before_reset", 0)), bool(op.attr("input_forget", 0)),
    )  # fmt: skip
    return op.items(triple, 3 if lstm else 2)


def _weight(op: ImportedNode, index: int) -> Arg:
    """W, R or B; a W that only hands its input on is no weight, and nothing to train."""
    return op.buffer(index) if index == WEIGHTS[0] and hands_on(op) else op.weight(index)


def hands_on(op: ImportedNode) -> bool:
    """Whether W is the identity: a layer whose input already is the contribution of all gates.

    So ``insert`` leaves a recurrent layer, with the layer's own W in a MatMul in front.
    """
    value, x = op.inputs[WEIGHTS[0]], op.inputs[0]
    if not isinstance(value, Const) or len(value.shape) != 3 or not isinstance(x, Traced):
        return False
    if x.node.meta.get("onnx", ("", ""))[1] not in _CONTRIBUTES:
        return False
    rows = value.shape[0] * value.shape[1]
    if value.shape[2] != rows or rows == 1:
        return False
    matrix = value.copy().reshape(rows, rows)
    return bool((matrix == torch.eye(rows, dtype=matrix.dtype)).all())


def _trained_part(op: ImportedNode, weights: list[Arg]) -> list[Arg]:
    """The same, with the Wb of 0 beside such a W held at 0: the contribution has its own bias."""
    value = op.inputs[BIAS] if op.has(BIAS) else None
    if not isinstance(value, Const) or not hands_on(op):
        return weights
    bias = value.copy()
    if bias[:, : bias.shape[1] // 2].any():
        return weights
    return [*weights[:-1], op.call(functions.state_bias, weights[-1])]


def _in_order(op: ImportedNode, index: int) -> Arg:
    """W, R or B with the gates in torch's order; at worst put in order when it runs."""
    if not op.has(index):
        return None
    order, value = order_of(op.node.op_type, index), op.inputs[index]
    weight = _weight(op, index)
    if order == tuple(range(len(order))) or (isinstance(value, Const) and value.gates):
        return weight
    if isinstance(value, Traced):
        parameters = parameters_in_order(value.node, order, 2 if index == BIAS else 1)
        if parameters is not None:
            op.store.idle.append(value.node)
            return parameters
    return op.call(arranged, weight, order)


def _state(op: ImportedNode, index: int) -> Arg:
    """An initial state; None is zeros."""
    if not op.has(index):
        return None
    value = op.inputs[index]
    if isinstance(value, Traced) and _is_zero(value.node):
        op.store.idle.append(value.node)
        return None
    return op.tensor(index)


def _is_zero(node: Any) -> bool:
    """Whether zeros are spread over a shape that is only known when it runs."""
    if not isinstance(node, fx.Node):
        return False
    if node.target in (shape.slice_axes, shape.expand):
        return _is_zero(node.args[0])
    if node.target is host_tensor:
        return bool(node.args[0] == 0)
    return node.target is shape.full and bool(node.args[1] == 0)


def _activations(op: ImportedNode, kind: str, directions: int) -> tuple[functions.Chosen, ...]:
    """Names with their parameters: the two lists feed, in order, those that take any."""
    names = op.attr("activations", USUAL[kind] * directions)
    names = tuple(n.lower() for n in names)  # torch writes Tanh, others tanh
    unknown = [n for n in names if n not in functions.ACTIVATIONS]
    if unknown or len(names) != len(USUAL[kind]) * directions:
        op.fail(f"activations {', '.join(names)}")
    alphas, betas = (list(op.attr(f"activation_{n}", ())) for n in ("alpha", "beta"))
    chosen: list[functions.Chosen] = []
    for name in names:
        defaults = functions.ACTIVATIONS[name][1]
        given = [rest.pop(0) if rest else d for d, rest in zip(defaults, (alphas, betas))]  # noqa: B905
        values = tuple(v for v in given if v is not None)
        if len(values) < len(given):
            op.fail(f"activation {name} without activation_alpha and activation_beta")
        chosen.append((name, values))
    if alphas or betas:
        op.fail("more entries in activation_alpha or activation_beta than its activations take")
    return tuple(chosen)
