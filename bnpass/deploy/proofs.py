"""How a deployed model is proved before it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bnpass.deploy.result import Deployed, Model

Proof = Callable[[Deployed, Model], object]
"""(what was done, the model to be proved) -> anything, or raises."""


@dataclass(frozen=True)
class Proofs:
    """The folded model is proved with float32's tolerance, the narrowed one with its own.

    A wrong fold cannot hide behind the coarser one.
    """

    fold: Proof
    half: Proof


def _verify_fold(done: Deployed, result: Model) -> None:
    from bnpass.verdict.judge import judge

    judge(done.reference, result, done.edits, prepare=done.prepare).raise_if_failed()


def _verify_half(done: Deployed, result: Model) -> None:
    from bnpass.runtime.precision import precision
    from bnpass.verdict.judge import judge

    assert done.half is not None
    rule = precision(done.reference, done.half.dtype).rule
    judge(done.reference, result, done.edits, prepare=done.prepare, rule=rule).raise_if_failed()


verified = Proofs(_verify_fold, _verify_half)
"""Edit by edit, and on onnxruntime; see :func:`bnpass.verdict.judge.judge`."""

