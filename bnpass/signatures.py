"""Types of the public functions' keywords, for the overloads in :mod:`bnpass.api`.

``insert(nn.Module)`` gives an nn.Module, ``insert(path)`` a ModelProto, and so on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import onnx
    import torch

    OnnxSource = str | os.PathLike[str] | onnx.ModelProto
    """A path of an ONNX file, or a model in memory."""

    GraphSource = torch.fx.GraphModule | torch.export.ExportedProgram
    """What comes back as a GraphModule."""

    TorchSource = torch.nn.Module | torch.export.ExportedProgram

    ExampleInputs = tuple[Any, ...] | torch.Tensor | Mapping[str, Any] | None
    """Positional arguments of ``forward``, its only one, or keyword arguments."""


class SelectKeywords(TypedDict, total=False):
    """Which operators."""

    only: Sequence[str]
    skip: Sequence[str]


class InsertKeywords(SelectKeywords, total=False):
    """See :func:`bnpass.insert`."""

    init: str
    data: Any
    gates: bool
    last: bool
    before: Sequence[str]
    norms: bool
    allow_unfoldable: bool
    clone: bool
    sums: str
    linear: bool
    zero_gamma: bool
    strip: Sequence[str]
    eps: float
    momentum: float
    sync: bool
    freeze_inputs: bool
    branches: str
    seed: int
    max_growth: float
    force: bool


class FoldKeywords(SelectKeywords, total=False):
    """See :func:`bnpass.fold`."""

    leftover: str
    training_mode: str
    freeze_inputs: bool
    max_growth: float
    fold_norms: bool
    collapse: str
    to: str | None
    to_io: bool
    verify: bool
    trust_shapes: bool
    dims: Mapping[str, int] | None
    data: Iterable[Any] | None
    force: bool


class StripKeywords(SelectKeywords, total=False):
    """See :func:`bnpass.strip`."""

    dropout: float | None
    verify: bool
    force: bool
