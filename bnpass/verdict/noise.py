"""The network's own noise: how far its outputs move when its numbers move by a rounding.

It is the yardstick of questions 2 and 3: no fold can be expected to be nearer to the original than
the original is to itself. A right fold of 37 real models was within 1.04 times it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bnpass.onnx_model.attributes import attribute
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.signature import is_float
from bnpass.onnx_model.storage import external
from bnpass.runtime.inputs import Feeds

Array = np.ndarray[Any, Any]

LARGEST = 1 << 29
"""Bytes of weights up to which they are moved, too."""


def moved(array: Array, rng: np.random.Generator) -> Array:
    """Each entry one unit in the last place up or down, or (half of them) as it is."""
    if not is_float(array.dtype) or array.dtype.name not in ("float32", "float64", "float16"):
        return array
    way = rng.integers(0, 4, array.shape)
    up = np.nextafter(array, np.asarray(np.inf, array.dtype))
    down = np.nextafter(array, np.asarray(-np.inf, array.dtype))
    return np.where(way == 0, up, np.where(way == 1, down, array)).astype(array.dtype)


def moved_feeds(feeds: Feeds, rng: np.random.Generator) -> Feeds | None:
    """Inputs whose floats have moved; None where no input is a float."""
    if not any(is_float(a.dtype) for a in feeds.values()):
        return None
    return {name: moved(array, rng) for name, array in feeds.items()}


def moved_weights(
    model: onnx.ModelProto, seed: int, *, codes: bool = False
) -> onnx.ModelProto | None:
    """The model with all weights of more than one element moved; None where it is too large.

    Scalars stay: a moved epsilon or exponent made NaN of real files. With ``codes`` the int32 codes
    of biases move by a step: a fold that was proven edit by edit rounds them to one.
    """
    tensors = list(model.graph.initializer)
    size = sum(external.nbytes(t) or 0 for t in tensors)
    if size > LARGEST or any(external.is_external(t) for t in tensors):
        return None
    rng = np.random.default_rng(seed)
    copy = copied(model)
    _unshare(copy.graph)
    biases = _bias_codes(copy.graph) if codes else set()
    for tensor in copy.graph.initializer:
        if tensor.data_type in (1, 10, 11) and int(np.prod(tensor.dims)) > 1:
            array = moved(numpy_helper.to_array(tensor), rng)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        elif tensor.name in biases:
            step = 2 * rng.integers(0, 2, tuple(tensor.dims)) - 1
            array = (numpy_helper.to_array(tensor) + step).clip(-_CODES - 1, _CODES)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.int32), tensor.name))
    return copy


_CODES = 2**31 - 1


def _bias_codes(graph: onnx.GraphProto) -> set[str]:
    """Initializers of int32 codes that a DequantizeLinear reads: a bias, rounded to a step."""
    read = {n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    codes = (t for t in graph.initializer if t.data_type == onnx.TensorProto.INT32)
    return {t.name for t in codes if t.name in read and len(t.dims) == 1}


def _unshare(graph: onnx.GraphProto) -> None:
    """Give each small weight's further readers their own, or its moves would cancel."""
    tensors = {t.name: t for t in graph.initializer if int(np.prod(t.dims)) <= _SMALL}
    seen: set[str] = set()
    for number, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if name in seen and name in tensors:
                own = graph.initializer.add()
                own.CopyFrom(tensors[name])
                own.name = node.input[slot] = f"{name}#{number}.{slot}"
            seen.add(name)


_SMALL = 1 << 16  # elements


_STEPS = frozenset(
    """
    QuantizeLinear DynamicQuantizeLinear Round Floor Ceil Sign ArgMax ArgMin Greater GreaterOrEqual
    Less LessOrEqual Equal TopK Hardmax NonZero OneHot QLinearConv QLinearMatMul ThresholdedRelu
    """.split()  # noqa: SIM905
)


def stepped_outputs(model: onnx.ModelProto) -> set[str]:
    """Outputs behind an operator that makes steps out of numbers."""
    behind: set[str] = set()
    for node in model.graph.node:
        cast = node.op_type == "Cast" and attribute(node, "to") not in (1, 10, 11, 16)
        if cast or node.op_type in _STEPS or not behind.isdisjoint(node.input):
            behind.update(filter(None, node.output))
    return {o.name for o in model.graph.output} & behind
