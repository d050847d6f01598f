"""What the deployed file does on onnxruntime: its outputs and their accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    from torch import fx

    from bnpass.data import Data

Array = np.ndarray[Any, Any]

BATCH = 500
"""Samples in one call of onnxruntime."""


def deployed_outputs(model: onnx.ModelProto, data: Data, provider: str = "cpu") -> Array:
    """The first output of a model for all samples, as onnxruntime computes it, optimised."""
    from bnpass.runtime.session import session

    runner = session(model, provider=provider)
    feed, out = runner.get_inputs()[0].name, runner.get_outputs()[0].name
    return np.concatenate([runner.run([out], {feed: x})[0] for x, _ in data.batches(BATCH)])


def accuracy_of(outputs: Array, data: Data, gm: fx.GraphModule, loss: str) -> float | None:
    """Share of right answers among a network's final outputs; None where there is no such thing.

    Args:
        outputs: what the deployed model gives for ``data``, ``(n, ...)``.
        data: with labels.
        gm: the trained network, which says what an output means.
        loss: the loss that it was trained with.
    """
    import torch

    from bnpass.training.feed import to_tensors
    from bnpass.training.losses import objective
    from bnpass.training.outputs import split_ending

    sample, _ = to_tensors(data, np.arange(min(2, len(data))), torch.device("cpu"))
    goal = objective(gm, data.labels, sample, loss=loss)
    if goal.correct is None:
        return None
    found = torch.from_numpy(np.ascontiguousarray(outputs, np.float32))
    if goal.name == "bce" and split_ending(gm)[1] == "sigmoid":
        found = found - 0.5  # the objective judges the value in front of the Sigmoid
    return float(goal.correct(found, torch.from_numpy(data.labels)).double().mean())
