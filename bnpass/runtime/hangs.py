"""A run that does not end: a loop without an end, or a large model and too little time?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnpass.errors import InputError
from bnpass.onnx_model.attributes import is_onnx, node_name
from bnpass.onnx_model.scopes import all_nodes
from bnpass.runtime.child import LimitError, TimeLimitError

if TYPE_CHECKING:
    from bnpass.runtime.engines import Loaded

_REPEATING = ("Loop", "Scan")  # an If runs its branch once
_FAIR_SHARE = 0.5  # of the budget: a run that got less may have come too late
_SHOWN = 3


def raise_if_hung(error: LimitError, model: Loaded | None, budget: float | None) -> None:
    """Refuse a model with loops of which no run ends, though it had the time.

    Args:
        error: what stopped it.
        model: what was run; None for a torch module.
        budget: seconds that the whole verification had; None for no limit.

    Raises:
        InputError: with the loops' names and the step.
    """
    if model is None or not isinstance(error, TimeLimitError) or not error.first_run:
        return
    if budget is not None and error.seconds < _FAIR_SHARE * budget:
        return
    found = [
        f"{node.op_type} {node_name(node)!r}"
        for node in all_nodes(model.proto)
        if node.op_type in _REPEATING and is_onnx(node)
    ]
    if not found:
        return
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise InputError(
        f"{error.step} did not end within {error.seconds:.3g} s: it may hang in "
        f"{', '.join(found[:_SHOWN])}{more}",
        "--check-budget SECONDS (budget=) gives it more time, 0 leaves running it out",
    ) from None
