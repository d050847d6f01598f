"""Shapes and types of every value, by onnx's own shape inference on a copy without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx

from bnpass.ir.graph import Dim
from bnpass.onnx_model.scopes import Place, placed_bodies

_KEPT_ELEMENTS = 256  # constants up to this size may be shapes that inference needs

ValueTypes = dict[str, onnx.TypeProto.Tensor]

def infer(model: onnx.ModelProto) -> dict[Place, ValueTypes]:
    """Tensor types by value name, for the main graph (the empty place) and every nested body.

    What inference does not know is filled in from the model's value_info.
    """
    skeleton = _skeleton(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        inferred = skeleton
    found: dict[Place, ValueTypes] = {}
    _collect(model.graph, inferred.graph, (), found)
    return found


class LazyTypes:
    """Shape inference that runs when the first shape is asked for: many folds need none."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._found: dict[Place, ValueTypes] | None = None

    def at(self, place: Place) -> Callable[[], ValueTypes]:
        """A function that returns the types of the graph at a place."""

        def types() -> ValueTypes:
            if self._found is None:
                self._found = infer(self._model)
            return self._found.get(place, {})

        return types


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    graph, source = skeleton.graph, model.graph
    graph.name = source.name or "g"
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    listed = {i.name for i in source.input}
    small: dict[str, onnx.TensorProto] = {}
    for tensor in source.initializer:
        if _elements(tensor) <= _KEPT_ELEMENTS and not tensor.external_data:
            graph.initializer.append(tensor)
            small[tensor.name] = tensor
        elif tensor.name not in listed:
            graph.input.append(_typed(tensor, tensor.name))
    for node in source.node:
        tensor = _constant_tensor(node)
        if tensor is not None and _elements(tensor) > _KEPT_ELEMENTS:
            graph.input.append(_typed(tensor, node.output[0]))
        elif node.op_type == "Identity" and node.input[0] in small:
            # inference does not look through it for axes and shapes
            copy = graph.initializer.add()
            copy.CopyFrom(small[node.input[0]])
            copy.name = node.output[0]
            small[copy.name] = copy
            if model.ir_version < 4:
                graph.input.append(_typed(copy, copy.name))
        else:
            graph.node.append(node)
    return skeleton


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count


def _typed(tensor: onnx.TensorProto, name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))


def _collect(
    graph: onnx.GraphProto,
    inferred: onnx.GraphProto,
    place: Place,
    found: dict[Place, ValueTypes],
) -> None:
    types = found[place] = {}
    for source in (graph, inferred):
        for info in _infos(source):
            tensor = info.type.tensor_type
            if info.type.HasField("tensor_type") and (
                tensor.HasField("shape") or info.name not in types
            ):
                types[info.name] = tensor
    twins = {at: body for node in inferred.node for at, body in placed_bodies(node, place)}
    for node in graph.node:
        for at, body in placed_bodies(node, place):
            _collect(body, twins.get(at, body), at, found)


def _infos(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.input
    yield from graph.output


def dims(tensor: onnx.TypeProto.Tensor | None) -> tuple[Dim, ...] | None:
    """The dimensions of a tensor type; None while the rank is unknown."""
    if tensor is None or not tensor.HasField("shape"):
        return None
    return tuple(
        # some exporters write -1 for a size that they do not know
        (d.dim_value if d.dim_value >= 0 else None)
        if d.HasField("dim_value")
        else (d.dim_param or None)
        for d in tensor.shape.dim
    )
