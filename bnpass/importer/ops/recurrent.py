"""LSTM, GRU and RNN."""

from __future__ import annotations

from bnpass.importer.functions import recurrent as functions
from bnpass.importer.op import Op
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg


@register_op("LSTM")
@register_op("GRU")
@register_op("RNN")
def recurrent(op: Op) -> Arg:
    """The weights stay in ONNX's layout; gates are reordered when it runs."""
    kind, direction = op.node.op_type, op.attr("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    clip = op.attr("clip")
    lstm = kind == "LSTM"
    if lstm and clip is not None:
        op.fail("LSTM with clip")  # onnxruntime and ONNX's text differ on the cell state
    weights = [op.weight(i) for i in (1, 2, 3)]
    states = [op.tensor(i) if op.has(i) else None for i in (4, 5)]
    cell = op.tensor(6) if lstm and op.has(6) else None
    peepholes = op.weight(7) if lstm else None
    triple = op.call(
        functions.recurrent, op.tensor(0), *weights, *states, cell, peepholes, kind, direction,
        op.attr("layout", 0), _activations(op, kind, directions), clip,
        bool(op.attr("linear_before_reset", 0)), bool(op.attr("input_forget", 0)),
    )  # fmt: skip
    return op.items(triple, 3 if lstm else 2)


def _activations(op: Op, kind: str, directions: int) -> tuple[str, ...]:
    given = op.attr("activations")
    if given is None:
        return functions.USUAL[kind] * directions
    if op.attr("activation_alpha") or op.attr("activation_beta"):
        op.fail("activation_alpha or activation_beta")
    names = tuple(a.decode().lower() for a in given)
    unknown = [n for n in names if n not in functions.ACTIVATIONS]
    if unknown or len(names) != len(functions.USUAL[kind]) * directions:
        op.fail(f"activations {', '.join(names)}")
    return names
