"""Fold, then narrow: each half verified for itself before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from bnpass.frontends.onnx.folding import Folded, FoldOptions, fold_model
from bnpass.frontends.onnx.folding import fold as fold_in_place
from bnpass.frontends.onnx.half import HalfModel, half_type, to_half
from bnpass.onnx_model.model import OnnxModel

FoldCheck = Callable[[Any, Any, frozenset[str]], object]
"""(original, folded, values that changed) -> None, or raises."""

HalfCheck = Callable[[Any, HalfModel, frozenset[str]], object]
"""(original, narrowed, values that changed) -> None, or raises."""


def fold_to_half(
    model: Path | onnx.ModelProto,
    options: FoldOptions,
    to: str,
    *,
    io: bool = False,
    fold: Callable[[onnx.ModelProto, FoldOptions], Folded] = fold_model,
    check: FoldCheck | None = None,
    check_half: HalfCheck | None = None,
) -> tuple[Folded, HalfModel]:
    """Fold a model in float64, round it to float32, and convert that to a narrow type.

    The folded model is proved against the original with float32's tolerance, the narrow one with
    its own: a wrong fold cannot hide behind the coarser one.

    Args:
        model: a file, read whole, or a ModelProto, which stays as it is.
        options: of the fold.
        to: see :func:`bnpass.frontends.onnx.half.to_half`.
        io: also the graph's inputs and outputs.
        fold: folds a ModelProto.
        check: called with the folded model.
        check_half: called with the narrowed one.

    Raises:
        UsageError, InputError, RefusedError, UnsupportedError, and what the checks raise.
    """
    half_type(to)
    if isinstance(model, Path):
        done = fold_in_place(OnnxModel.of(model), options)
    else:
        done = fold(model, options)
    if check is not None and done.plan.entries:
        check(model, done.model, done.changed)
    narrowed = to_half(done.model, to, io=io)
    done.edited.proto = narrowed.model
    if check_half is not None:
        check_half(model, narrowed, done.changed)
    return done, narrowed


def verify_half(before: Any, narrowed: HalfModel, changed: frozenset[str]) -> None:
    """Compare a narrowed model with the original, with the tolerance that its type allows.

    Raises:
        VerificationError: they differ by more.
    """
    from bnpass.runtime.precision import precision
    from bnpass.runtime.verify import verify

    rule = precision(before, narrowed.dtype).rule
    found = verify(before, narrowed.model, changed=changed, rtol=rule.rtol, atol=rule.atol)
    found.raise_if_failed()
