"""Unchanged nodes that ONNX itself defines sample by sample: nothing is left to prove of them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from bnpass.onnx_model.attributes import attribute, is_onnx
from bnpass.passes.free_batch.node import Batch
from bnpass.verdict.side import Side

_LAYERS = frozenset(
    """
    Conv ConvTranspose MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool
    InstanceNormalization GroupNormalization LRN DepthToSpace SpaceToDepth
    """.split()  # noqa: SIM905
)
"""Operators on (N, C, ...)."""

_ENTRIES = frozenset(
    """
    Abs Add Cast Ceil Clip Div Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
    LeakyRelu Log Max Mean Min Mish Mul Neg PRelu Pow Relu Selu Sigmoid Softplus Softsign Sqrt Sub
    Sum Tanh Where
    """.split()  # noqa: SIM905
)
"""Operators entry by entry."""


_MASK = 3


def same_text(one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    """Whether two nodes are the same operator on values of the same names."""
    if (one.op_type, one.domain, list(one.input)) != (
        other.op_type, other.domain, list(other.input)
    ):  # fmt: skip
        return False
    texts = [sorted(a.SerializeToString() for a in node.attribute) for node in (one, other)]
    return bool(texts[0] == texts[1] and list(one.output) == list(other.output))


def is_sample_wise(old: Side, new: Side, value: str, values: Mapping[str, Batch]) -> bool:
    """Whether a value is made, as before, by an operator that knows nothing but samples.

    Args:
        old, new: the graphs.
        value: carries the batch.
        values: where the batch is, by name.
    """
    node = old.graph.node[old.producers[value]]
    if not same_text(node, new.graph.node[new.producers[value]]) or node.output[0] != value:
        return False
    first, batch = values.get(node.input[0]) if node.input else None, values[value]
    rest = [name for name in node.input[1:] if name]
    if is_onnx(node, *_ENTRIES):
        return _entry_by_entry(old, node, values)
    if is_onnx(node, "Attention"):
        return _attends(old, node, values)
    if first != batch or not all(map(old.is_constant, rest)):
        return False
    if is_onnx(node, "BatchNormalization"):
        return batch.axis == 0 and not attribute(node, "training_mode", 0)
    if is_onnx(node, "LayerNormalization"):
        dims = old.shape(node.input[0])
        return dims is not None and batch.axis < attribute(node, "axis", -1) % len(dims)
    if is_onnx(node, "MatMul"):
        return _rows(old, node, batch)
    if is_onnx(node, "Gemm"):
        return batch.axis == 0 and not attribute(node, "transA", 0) and _row(old, node)
    return batch.axis == 0 and is_onnx(node, *_LAYERS)


def _entry_by_entry(old: Side, node: onnx.NodeProto, values: Mapping[str, Batch]) -> bool:
    """Every operand has the batch where the result has it, or nothing along it."""
    batch, shape = values[node.output[0]], old.shape(node.output[0])
    if shape is None:
        return False
    for name in filter(None, node.input):
        dims, there = old.shape(name), values.get(name)
        if dims is None:
            return False
        axis = batch.axis - len(shape) + len(dims)
        if there is not None and there != Batch(axis, batch.factor):
            return False
        if there is None and (not old.is_constant(name) or (axis >= 0 and dims[axis] != 1)):
            return False
    return True


def _attends(old: Side, node: onnx.NodeProto, values: Mapping[str, Batch]) -> bool:
    """Samples along axis 0 of everything but a mask, which may be the same for all."""
    batch = values[node.output[0]]
    for index, name in enumerate(node.input):
        dims = old.shape(name) if name else None
        if not name or (values.get(name) == batch and (index != _MASK or len(dims or ()) == 4)):
            continue
        alike = old.is_constant(name) and dims is not None and (len(dims) < 4 or dims[0] == 1)
        if index != _MASK or not alike:
            return False
    return batch.axis == 0


def _rows(old: Side, node: onnx.NodeProto, batch: Batch) -> bool:
    """A product with one matrix of weights, the batch not among what is summed over."""
    weights, dims = old.shape(node.input[1]), old.shape(node.input[0])
    if weights is None or dims is None:
        return False
    return len(weights) == 2 and batch.axis < len(dims) - 1


def _row(old: Side, node: onnx.NodeProto) -> bool:
    """Whether a Gemm's bias is the same for every row."""
    if len(node.input) < 3 or not node.input[2]:
        return True
    dims = old.shape(node.input[2])
    return dims is not None and (len(dims) < 2 or dims[0] == 1)
