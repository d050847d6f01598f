"""Positions that count, on onnxruntime: a mask as one more input of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bnpass.data.masks import Fit, fit
from bnpass.data.protocol import Arguments
from bnpass.onnx_model.model import OnnxModel
from bnpass.runtime.session import run, session
from bnpass.statistics.nodes import Builder, add_chosen, prune

MASK_INPUT = "bnpass_mask"
"""The input: a bool ``(k,)``, the batch's mask as one row."""

Choose = Callable[[Builder, str], str]
"""Adds the nodes that take what counts of a value; gives its name, empty where all counts."""


def mask_feed(call: Arguments) -> dict[str, np.ndarray[Any, Any]]:
    """What a batch feeds to :data:`MASK_INPUT`; nothing without a mask."""
    if call.mask is None:
        return {}
    mask = call.mask.detach().cpu().numpy() if hasattr(call.mask, "detach") else call.mask
    return {MASK_INPUT: np.asarray(mask).reshape(-1) != 0}


def chooser(
    model: onnx.ModelProto, values: Sequence[tuple[str, int]], example: Arguments | None,
    feeds: Mapping[str, np.ndarray[Any, Any]], provider: str,
) -> Choose:
    """How the mask of the data lies on each value; gives the model its input, in place.

    Args:
        model: the model.
        values: names, each with its channel axis.
        example: a few samples.
        feeds: the same as the model's inputs.
        provider: ``"cpu"`` or ``"cuda"``.
    """
    if example is None or example.mask is None:
        return lambda _, __: ""
    shapes = _shapes(model, [name for name, _ in values], feeds, provider)
    mask = tuple(example.mask.shape)
    axes = {name: axis % len(shapes[name]) for name, axis in values}
    found = {name: fit(mask, shapes[name], axis) for name, axis in axes.items()}
    model.graph.input.append(helper.make_tensor_value_info(MASK_INPUT, TensorProto.BOOL, ["mask"]))

    def choose(build: Builder, value: str) -> str:
        if found[value] is Fit.ALL:
            return ""
        over = 1 if found[value] is Fit.FLAT else len(mask)
        return add_chosen(build, value, axes[value], len(shapes[value]), MASK_INPUT, over)

    return choose


def _shapes(
    model: onnx.ModelProto, names: list[str], feeds: Mapping[str, np.ndarray[Any, Any]],
    provider: str,
) -> dict[str, tuple[int, ...]]:
    """The shapes of values for some inputs."""
    probe = OnnxModel.to_edit(model).proto
    build = Builder(probe)
    outputs = {name: build.add("Shape", name) for name in dict.fromkeys(names)}
    probe.graph.node.extend(build.nodes)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs.values())
    prune(probe)
    built = session(probe, provider, optimize=False)
    used = {port.name for port in built.get_inputs()}
    found = run(built, list(outputs.values()), {n: a for n, a in feeds.items() if n in used})
    return {name: tuple(map(int, shape)) for name, shape in zip(outputs, found, strict=True)}
