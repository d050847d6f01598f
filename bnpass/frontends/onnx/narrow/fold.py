"""Fold, then narrow: each half verified for itself before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from bnpass.files import load_model
from bnpass.frontends.onnx.folding import Folded, FoldOptions, fold_model
from bnpass.frontends.onnx.narrow import Narrowed, narrow_model, narrow_type

FoldCheck = Callable[[Any, Any, frozenset[str]], object]
"""(original, folded, values that changed) -> None, or raises."""

NarrowCheck = Callable[[Any, Narrowed, frozenset[str]], object]
"""(original, narrowed, values that changed) -> None, or raises."""


def fold_narrow(
    model: Path | onnx.ModelProto,
    options: FoldOptions,
    to: str,
    *,
    io: bool = False,
    fold: Callable[[onnx.ModelProto, FoldOptions], Folded] = fold_model,
    check: FoldCheck | None = None,
    check_narrow: NarrowCheck | None = None,
) -> tuple[Folded, Narrowed]:
    """Fold a model in float64, round it to float32, and convert that to a narrow type.

    The folded model is proved against the original with float32's tolerance, the narrow one with
    its own: a wrong fold cannot hide behind the coarser one.

    Args:
        model: a file, read whole, or a ModelProto, which stays as it is.
        options: of the fold.
        to: see :func:`bnpass.frontends.onnx.narrow.narrow_model`.
        io: also the graph's inputs and outputs.
        fold: folds a ModelProto.
        check: called with the folded model.
        check_narrow: called with the narrowed one.

    Raises:
        UsageError, InputError, RefusedError, UnsupportedError, and what the checks raise.
    """
    narrow_type(to)
    if isinstance(model, Path):
        path = model
        done = fold_model(load_model(path), options, fresh=lambda: load_model(path))
    else:
        done = fold(model, options)
    if check is not None and done.plan.entries:
        check(model, done.model, done.changed)
    narrowed = narrow_model(done.model, to, io=io)
    done.model = narrowed.model
    if check_narrow is not None:
        check_narrow(model, narrowed, done.changed)
    return done, narrowed


def verify_narrow(before: Any, narrowed: Narrowed, changed: frozenset[str]) -> None:
    """Compare a narrowed model with the original, with the tolerance that its type allows.

    Raises:
        VerificationError: they differ by more.
    """
    from bnpass.runtime.precision import precision
    from bnpass.runtime.verify import verify

    rule = precision(before, narrowed.dtype).rule
    found = verify(before, narrowed.model, changed=changed, rtol=rule.rtol, atol=rule.atol)
    found.raise_if_failed()
