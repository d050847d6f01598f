"""Attention and RotaryEmbedding."""

from __future__ import annotations

from bnpass.importer.functions import attention as functions
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg, Const, torch_dtype


@register_op("Attention", since=23)
def attention(op: ImportedNode) -> Arg:
    """Since opset 24 with the lengths of an external cache, since 25 with a window."""
    tensors = [op.tensor(i) if op.has(i) else None for i in range(7) if i != 3]
    tensors.insert(3, op.buffer(3) if _hides(op) else op.weight(3))
    precision = op.attr("softmax_precision")
    made = op.call(
        functions.attention, *tensors, op.attr("q_num_heads", 0), op.attr("kv_num_heads", 0),
        op.attr("scale"), bool(op.attr("is_causal", 0)), op.attr("softcap", 0.0),
        None if precision is None else torch_dtype(precision), op.attr("qk_matmul_output_mode", 0),
        op.attr("left_window_size", -1), op.attr("right_window_size", -1), not op.wants(3),
    )  # fmt: skip
    return op.items(made, 4)[: len(op.node.output)]


def _hides(op: ImportedNode) -> bool:
    """Whether a constant attn_mask switches keys off; otherwise it is a learned bias."""
    mask = op.inputs[3] if op.has(3) else None
    return isinstance(mask, Const) and bool((mask.tensor.float() < -1e4).any())


@register_op("RotaryEmbedding", since=23)
def rotary_embedding(op: ImportedNode) -> Arg:
    """The tables are no weights: they hold cosines and sines."""
    positions = op.tensor(3) if op.has(3) else None
    return op.call(
        functions.rotary_embedding, op.tensor(0), op.buffer(1), op.buffer(2), positions,
        op.attr("num_heads", 0), op.attr("rotary_embedding_dim", 0),
        bool(op.attr("interleaved", 0)),
    )  # fmt: skip
