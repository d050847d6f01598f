"""What the deployed file does on onnxruntime: its outputs and how good they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from bnpass.data import Data, NamedData
    from bnpass.training import TrainConfig

Array = np.ndarray[Any, Any]

BATCH = 500
"""Samples in one call of onnxruntime."""


def outputs_of(
    model: onnx.ModelProto, data: Data | NamedData, provider: str = "cpu"
) -> dict[str, Array]:
    """Every output of a model for all samples, as onnxruntime computes it, optimised."""
    from bnpass.runtime.session import session

    runner = session(model, provider=provider)
    first, names = runner.get_inputs()[0].name, [out.name for out in runner.get_outputs()]
    parts = []
    for inputs, _ in data.batches(BATCH):
        feeds = inputs if isinstance(inputs, dict) else {first: inputs}
        parts.append(runner.run(names, feeds))
    return {name: np.concatenate(found) for name, found in zip(names, zip(*parts, strict=True),
                                                               strict=True)}


def deployed_outputs(
    model: onnx.ModelProto, data: Data | NamedData, provider: str = "cpu"
) -> Array:
    """The first output of a model for all samples; see :func:`outputs_of`."""
    return next(iter(outputs_of(model, data, provider).values()))


def metrics_of(
    outputs: dict[str, Array], data: Data | NamedData, gm: nn.Module, config: TrainConfig
) -> dict[str, float]:
    """How good a network's final outputs are, as :func:`bnpass.training.evaluate` says it.

    Args:
        outputs: what the deployed model gives for ``data``, by name.
        data: with labels.
        gm: the trained network, which says what an output means.
        config: the loss and the metric that it was trained with.
    """
    import torch

    from bnpass.data.trees import mapped
    from bnpass.nn.calls import as_tensor
    from bnpass.training.feed import Reader
    from bnpass.training.losses import objective

    reader = Reader(data, torch.device("cpu"), gm)
    goal = objective(gm, data.labels, reader.example()[0], loss=config.loss, metric=config.metric,
                     ignore_index=config.ignore_index)
    found = {name: as_tensor(value) for name, value in outputs.items()}
    # The objective judges the value in front of a Sigmoid, by its sign and its order.
    found = {name: value - 0.5 if name in goal.sigmoids else value for name, value in found.items()}
    given: Any = tuple(found[name] for name in goal.heads) if goal.heads else found
    judge = goal.metric(True)
    judge.add(next(iter(found.values())) if len(found) == 1 else
              given[0] if len(goal.heads) == 1 else given, mapped(data.labels, as_tensor))
    return judge.values()


def accuracy_of(
    outputs: Array, data: Data | NamedData, gm: nn.Module, loss: str
) -> float | None:
    """Share of right answers among a network's first output; None where there is no such thing."""
    from bnpass.training import TrainConfig
    from bnpass.training.outputs import ALONE, output_names

    name = next(iter(output_names(gm)), ALONE)
    return metrics_of({name: outputs}, data, gm, TrainConfig(loss=loss)).get("accuracy")
