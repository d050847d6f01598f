"""Fold a model file into another file: verified before it is written, all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from bnpass.frontends.onnx.folding import Folded, FoldOptions, fold
from bnpass.onnx_model.editing import edit_file

Check = Callable[[Any, Any, frozenset[str]], object]
"""(original, folded, values that changed) -> None, or raises; models are paths or ModelProtos."""


def fold_file(
    path: Path,
    output: Path,
    options: FoldOptions,
    *,
    check: Check | None = None,
    force: bool = False,
) -> Folded:
    """Fold ``path`` into ``output``; see :func:`bnpass.onnx_model.editing.edit_file`.

    Args:
        path: the model file.
        output: the file to write.
        options: see :class:`FoldOptions`.
        check: called before anything takes its final name.
        force: replace an existing output.

    Raises:
        OutputError, InputError, RefusedError, and what ``check`` raises.
    """

    def prove(done: Folded, result: Path | onnx.ModelProto) -> None:
        if check is not None and done.plan.entries:
            check(path, result, done.changed)

    return edit_file(path, output, lambda model: fold(model, options), check=prove, force=force)
