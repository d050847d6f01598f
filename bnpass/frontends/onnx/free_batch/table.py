"""The table of all operators: whatever is asked of it, the rules are in it."""

from __future__ import annotations

from collections.abc import Sequence

from bnpass.frontends.onnx.free_batch import layers, shaping
from bnpass.frontends.onnx.free_batch.rules import RULES, BatchedSizes, State, View
from bnpass.onnx_model.scopes import has_bodies

__all__ = ["follow", "layers", "shaping"]

TAKES_SIZES = frozenset(
    {
        "Cast", "Concat", "ConstantOfShape", "Div", "Expand", "Gather", "Identity", "Mul",
        "Reshape", "Resize", "Slice", "Squeeze", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that have a rule for shape arithmetic."""


def follow(view: View) -> Sequence[State]:
    """The states of a node's outputs.

    Raises:
        Refusal: the operator mixes samples, is unknown, or fixes the batch size.
    """
    if has_bodies(view.node):
        view.refuse("a nested graph is not followed")
    states = [view.states.get(name) for name in view.names if name]
    if states.count(None) == len(states):
        return [None] * len(view.node.output)
    op_type = view.node.op_type
    known = None if view.node.domain else RULES.get(op_type)
    if known is None:
        view.refuse("no rule says how it treats the batch")
    if op_type not in TAKES_SIZES:
        for state in states:
            if isinstance(state, BatchedSizes):
                view.refuse("it computes with the batch size")
    return known(view)
