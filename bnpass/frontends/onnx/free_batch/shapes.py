"""Shapes of all values of an ONNX model, inferred without touching its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from bnpass.onnx_model import carrying
from bnpass.onnx_model.attributes import opset_of
from bnpass.onnx_model.shapes import dims, free_sizes

Dims = tuple[int | str | None, ...]

ROUNDS = 8
"""How often shape arithmetic is folded and shapes are inferred again; nested reshapes need it."""

SMALL = 1024
"""Constants up to this many elements go along: shape arithmetic reads them."""


def infer_shapes(model: onnx.ModelProto) -> dict[str, Dims]:
    """Value name -> dimensions (int, symbol, or None); values of unknown rank are missing.

    Time and memory grow with the number of nodes, not with the size of the weights.
    """
    return infer(model)[0]


def infer(model: onnx.ModelProto) -> tuple[dict[str, Dims], dict[str, onnx.TensorProto]]:
    """The shapes, and the values of small constants: as they stand, or folded from such."""
    bare = skeleton(model)
    shapes = _inferred(bare)
    opset = opset_of(model)
    for _ in range(ROUNDS):  # shape arithmetic that is constant makes more shapes known
        if all(name in shapes for node in bare.graph.node for name in node.output if name):
            break
        if not fold_shapes(bare.graph, shapes, opset):
            break
        shapes = _inferred(bare)
    for tensor in model.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    fold_shapes(bare.graph, shapes, opset)  # Constant nodes, and what all shapes now tell
    return shapes, {t.name: t for t in bare.graph.initializer}


def _inferred(bare: onnx.ModelProto) -> dict[str, Dims]:
    graph = carrying.infer_shapes(bare).graph
    known = ((v.name, dims_of(v)) for v in (*graph.input, *graph.value_info, *graph.output))
    shapes = {name: dims for name, dims in known if dims is not None}
    return shapes | {t.name: tuple(t.dims) for t in graph.initializer}


def dims_of(value: onnx.ValueInfoProto) -> Dims | None:
    """The dimensions that a value info states."""
    return dims(value.type.tensor_type) if value.type.HasField("tensor_type") else None


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large constants replaced by inputs of their shape and type."""
    result = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    graph, source = result.graph, model.graph
    graph.name = source.name or "graph"
    constants = {t.name for t in source.initializer}
    graph.input.extend(free_sizes(i) for i in source.input if i.name not in constants)
    graph.output.extend(map(free_sizes, source.output))
    for tensor in source.initializer:
        if _count(tensor.dims) <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(_stand_in(tensor, tensor.name))
    for sparse in source.sparse_initializer:
        values = sparse.values
        graph.input.append(
            onnx.helper.make_tensor_value_info(values.name, values.data_type, list(sparse.dims))
        )
    for node in source.node:
        large = _large_constant(node)
        if large is None:
            graph.node.append(node)
        else:
            graph.input.append(_stand_in(large, node.output[0]))
    return result


FOLDED = frozenset(
    {
        "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Identity",
        "Mul", "Range", "ReduceProd", "Reshape", "Slice", "Squeeze", "Sub", "Tile", "Transpose",
        "Unsqueeze", "Where",
    }
)  # fmt: skip
"""What exporters compute shapes with."""


def fold_shapes(graph: onnx.GraphProto, shapes: Mapping[str, Dims], opset: int) -> int:
    """Replace constant shape arithmetic by initializers, in place; how many nodes were replaced.

    A Shape whose input has known dimensions counts as constant.
    """
    from onnx import numpy_helper

    known = _Arrays({t.name: t for t in graph.initializer})
    made: dict[str, np.ndarray] = {}
    kept = []
    for node in graph.node:
        value = _folded(node, opset, known, shapes)
        if value is None:
            kept.append(node)
        else:
            known[node.output[0]] = made[node.output[0]] = value
    if made:
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in made.items())
    return len(made)


class _Arrays(dict[str, np.ndarray]):
    """Arrays by name; those of the initializers are made when asked for."""

    def __init__(self, tensors: Mapping[str, onnx.TensorProto]) -> None:
        super().__init__()
        self._tensors = tensors

    def __missing__(self, name: str) -> np.ndarray | None:
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        array: np.ndarray = onnx.numpy_helper.to_array(tensor)
        self[name] = array
        return array


def _folded(
    node: onnx.NodeProto,
    opset: int,
    known: _Arrays,
    shapes: Mapping[str, Dims],
) -> np.ndarray | None:
    if node.domain or len(node.output) != 1:
        return None
    if node.op_type == "Constant" and node.attribute[0].name in ("value", "value_ints"):
        attribute = node.attribute[0]
        if attribute.name == "value_ints":
            return np.array(attribute.ints, dtype=np.int64)
        array: np.ndarray = onnx.numpy_helper.to_array(attribute.t)
        return array
    if node.op_type == "Shape":
        dims = shapes.get(node.input[0])
        if dims is None or not all(isinstance(d, int) for d in dims):
            return None
        ends = {a.name: a.i for a in node.attribute}
        return np.array(dims[ends.get("start", 0) : ends.get("end")], dtype=np.int64)
    if node.op_type not in FOLDED:
        return None
    inputs = [known[name] for name in node.input if name]
    arrays = [v for v in inputs if v is not None and v.size <= SMALL]
    if not arrays or len(arrays) != len(node.input):
        return None
    if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range") and _grows(arrays):
        return None
    return _evaluated(node, arrays, opset)


def _grows(inputs: Sequence[np.ndarray]) -> bool:
    """Whether a result whose size is given by these numbers may be large."""
    sizes = [abs(int(v)) for v in inputs[-1].reshape(-1)]
    largest = max((abs(float(v)) for i in inputs for v in i.reshape(-1)), default=0)
    return _count(sizes) * max(i.size for i in inputs[:1]) > SMALL or largest > SMALL


def _evaluated(
    node: onnx.NodeProto, inputs: Sequence[np.ndarray], opset: int
) -> np.ndarray | None:
    """One node by onnx's reference implementation; None if it is large or cannot be run."""
    from onnx.reference import ReferenceEvaluator

    names = [f"i{n}" for n in range(len(inputs))]
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    del alone.input[:]
    alone.input.extend(names)
    typed = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), list(v.shape)
        )
        for n, v in zip(names, inputs, strict=True)
    ]
    result = onnx.ValueInfoProto(name=node.output[0])
    graph = onnx.helper.make_graph([alone], "node", typed, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feeds: dict[str, Any] = dict(zip(names, inputs, strict=True))
    try:
        outputs: Any = ReferenceEvaluator(model).run(None, feeds)
    except (ValueError, TypeError, RuntimeError, IndexError):
        return None
    array = np.asarray(outputs[0])
    return array if array.size <= SMALL else None


def _large_constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain or not node.attribute:
        return None
    tensor = node.attribute[0].t
    large = node.attribute[0].name == "value" and _count(tensor.dims) > SMALL
    return tensor if large else None


def _stand_in(tensor: onnx.TensorProto, name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))


def _count(dims: Iterable[int]) -> int:
    total = 1
    for dim in dims:
        total *= dim
    return total
