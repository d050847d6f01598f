"""A constant made for one sample, repeated for every sample of a batch of any size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnpass.frontends.onnx.free_batch.rules import Repeat
from bnpass.onnx_model.names import Names


def repeat_constants(
    model: onnx.ModelProto, repeats: Mapping[tuple[str, int], Repeat], names: Names
) -> None:
    """Let each use (first output of a node, input index) read the constant as often as needed.

    Tile (6) takes the count from the dimensions of the input that the repeat is like.
    """
    nodes = []
    for node in model.graph.node:
        first = node.output[0] if node.output else ""
        for index, name in enumerate(node.input):
            repeat = repeats.get((first, index))
            if repeat is not None:
                made = _tiled(model, name, node.input[repeat.like], repeat, names)
                nodes += made
                node.input[index] = made[-1].output[0]
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _tiled(
    model: onnx.ModelProto, name: str, like: str, repeat: Repeat, names: Names
) -> list[onnx.NodeProto]:
    axis, behind = repeat.axis, repeat.rank - repeat.axis - 1
    base = names.fresh(f"{name}_every_sample")
    where = _constant(model, f"{base}_axis", [axis], names)
    shape, size = (names.fresh(f"{base}_{part}") for part in ("shape", "size"))
    nodes = [
        helper.make_node("Shape", [like], [shape]),
        helper.make_node("Gather", [shape, where], [size], axis=0),
    ]
    parts = [size]
    if axis:
        parts.insert(0, _constant(model, f"{base}_before", [1] * axis, names))
    if behind:
        parts.append(_constant(model, f"{base}_behind", [1] * behind, names))
    counts = names.fresh(f"{base}_counts")
    nodes.append(helper.make_node("Concat", parts, [counts], axis=0))
    nodes.append(helper.make_node("Tile", [name, counts], [base]))
    return nodes


def _constant(model: onnx.ModelProto, name: str, values: list[int], names: Names) -> str:
    name = names.fresh(name)
    array = np.array(values, dtype=np.int64)
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    if model.ir_version < 4:  # that format lists every initializer among the inputs
        info = helper.make_tensor_value_info(name, onnx.TensorProto.INT64, list(array.shape))
        model.graph.input.append(info)
    return name
