"""A constant made for one sample, repeated for every sample of a batch of any size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnpass.onnx_model.messages import add_initializer, replace_nodes
from bnpass.onnx_model.model import OnnxModel
from bnpass.passes.free_batch import Repeat, Use


def repeat_constants(model: OnnxModel, repeats: Mapping[Use, Repeat]) -> None:
    """Let each use read the constant as often as needed.

    Tile (6) takes the count from the dimensions of the input that the repeat is like.
    """
    nodes = []
    graph = model.proto.graph
    for node in graph.node:
        first = node.output[0] if node.output else ""
        for index, name in enumerate(node.input):
            repeat = repeats.get((first, index))
            if repeat is not None:
                made = _tiled(model, name, node.input[repeat.like], repeat)
                nodes += made
                node.input[index] = made[-1].output[0]
        nodes.append(node)
    replace_nodes(graph, nodes)


def _tiled(model: OnnxModel, name: str, like: str, repeat: Repeat) -> list[onnx.NodeProto]:
    axis, behind = repeat.axis, repeat.rank - repeat.axis - 1
    base = model.fresh(f"{name}_every_sample")
    where = _constant(model, f"{base}_axis", [axis])
    shape, size = (model.fresh(f"{base}_{part}") for part in ("shape", "size"))
    nodes = [
        helper.make_node("Shape", [like], [shape]),
        helper.make_node("Gather", [shape, where], [size], axis=0),
    ]
    parts = [size]
    if axis:
        parts.insert(0, _constant(model, f"{base}_before", [1] * axis))
    if behind:
        parts.append(_constant(model, f"{base}_behind", [1] * behind))
    counts = model.fresh(f"{base}_counts")
    nodes.append(helper.make_node("Concat", parts, [counts], axis=0))
    nodes.append(helper.make_node("Tile", [name, counts], [base]))
    return nodes


def _constant(model: OnnxModel, name: str, values: list[int]) -> str:
    name = model.fresh(name)
    array = np.array(values, dtype=np.int64)
    add_initializer(model.proto, numpy_helper.from_array(array, name))
    return name
