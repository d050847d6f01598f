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


def _activations(op: Op, kind: str, directions: int) -> tuple[functions.Chosen, ...]:
    """Names with their parameters: the two lists feed, in order, those that take any."""
    names = op.attr("activations", functions.USUAL[kind] * directions)
    names = tuple(n.decode().lower() if isinstance(n, bytes) else n for n in names)
    unknown = [n for n in names if n not in functions.ACTIVATIONS]
    if unknown or len(names) != len(functions.USUAL[kind]) * directions:
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
