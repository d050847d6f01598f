"""``bnpass.train``: the loop of the command, on a module and data of one's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.errors import UsageError, close_matches

if TYPE_CHECKING:
    from torch import nn

    from bnpass.training.config import TrainConfig
    from bnpass.training.history import History
    from bnpass.training.loop import Progress


def train(
    model: nn.Module,
    data: Any,
    validation: Any = None,
    *,
    config: TrainConfig | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> History:
    """Train a module in place, to the same bits every time; your own loop does as well.

    Example:
        >>> model = bnpass.insert(module, example)
        >>> history = bnpass.train(model, dataset, steps=1000, lr=0.1)
        >>> bnpass.calibrate(model, inputs); deploy = bnpass.fold(model)

    Args:
        model: a module, such as :func:`bnpass.insert` and :func:`bnpass.to_torch` return.
        data: labelled samples: a torch Dataset, a DataLoader, an iterable of batches (inputs,
            targets), or what :mod:`bnpass.data` makes.
        validation: samples to judge by, likewise; None: none.
        config: all settings; None: the defaults, one epoch of SGD.
        output: folder for metrics.csv and checkpoints; None writes none.
        resume: go on from the last checkpoint in ``output``.
        progress: called at each row of the metrics.
        settings: single settings by name, over those of ``config``: ``steps``, ``epochs``, ``lr``,
            ``batch_size``, ``optimizer``, ``loss``, ``seed``, ``device`` ...; see
            :class:`bnpass.training.TrainConfig`.

    Returns:
        The run's :class:`~bnpass.training.History`; the model is left in eval mode.

    Raises:
        UsageError: an unknown setting, an ONNX model, or settings that contradict each other.
        InputError: data do not fit the module.
        MissingDependencyError: torch is not installed.
    """
    import torch

    from bnpass.training.config import TrainConfig
    from bnpass.training.loop import train as trained

    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"train takes a torch module, not {type(model).__name__}",
                         "bnpass.to_torch makes one of an ONNX model, bnpass.write_back brings the "
                         "weights back")
    known = [field.name for field in fields(TrainConfig)]
    for name in settings:
        if name not in known:
            raise UsageError(f"unknown setting {name!r}", close_matches(name, known)
                             or "bnpass.training.TrainConfig lists them")
    return trained(
        model, data, validation, replace(config or TrainConfig(), **settings),
        out=None if output is None else Path(output), resume=resume, progress=progress,
    )  # fmt: skip
