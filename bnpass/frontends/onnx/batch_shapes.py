"""Shapes of all values of an ONNX model, inferred without touching its weights."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

Dims = tuple[int | str | None, ...]

SMALL = 1024
"""Constants up to this many elements go along: shape arithmetic reads them."""


def infer_shapes(model: onnx.ModelProto) -> dict[str, Dims]:
    """Value name -> dimensions (int, symbol, or None); values of unknown rank are missing.

    Time and memory grow with the number of nodes, not with the size of the weights.
    """
    inferred = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True).graph
    shapes: dict[str, Dims] = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = dims_of(value)
        if dims is not None:
            shapes[value.name] = dims
    for tensor in model.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes


def dims_of(value: onnx.ValueInfoProto) -> Dims | None:
    """The dimensions that a value info states."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim
    )


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large constants replaced by inputs of their shape and type."""
    result = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    graph, source = result.graph, model.graph
    graph.name = source.name or "graph"
    constants = {t.name for t in source.initializer}
    graph.input.extend(i for i in source.input if i.name not in constants)
    graph.output.extend(source.output)
    for tensor in source.initializer:
        if _count(tensor.dims) <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(_stand_in(tensor, tensor.name))
    for node in source.node:
        large = _large_constant(node)
        if large is None:
            graph.node.append(node)
        else:
            graph.input.append(_stand_in(large, node.output[0]))
    return result


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
