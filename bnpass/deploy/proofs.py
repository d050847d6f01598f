"""How a deployed model is proved before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnpass.deploy.result import Deployed, Model

if TYPE_CHECKING:
    from bnpass.runtime.tolerance import Tolerance

Proof = Callable[[Deployed, Model], object]
"""(what was done, the model to be proved) -> anything, or raises."""


@dataclass(frozen=True)
class Proofs:
    """The folded model is proved with float32's tolerance, the narrowed one with its own.

    A wrong fold cannot hide behind the coarser one.
    """

    fold: Proof
    half: Proof


def verified(
    dims: Mapping[str, int] | None = None, data: Iterable[Any] | None = None
) -> Proofs:
    """Edit by edit, and on onnxruntime; see :func:`bnpass.verdict.judge.judge`.

    Args:
        dims: sizes of free dimensions, and values of inputs that are counts.
        data: batches to run both models on instead of random inputs.
    """
    batches = None if data is None else list(data)

    def fold(done: Deployed, result: Model, rule: Tolerance | None = None) -> None:
        from bnpass.verdict.judge import judge

        judge(done.reference, result, done.edits, prepare=done.prepare, rule=rule, dims=dims,
              data=batches).raise_if_failed()

    def half(done: Deployed, result: Model) -> None:
        from bnpass.runtime.precision import precision

        assert done.half is not None
        fold(done, result, precision(done.reference, done.half.dtype).rule)

    return Proofs(fold, half)
