"""Shapes and types of every value, by onnx's own shape inference on a copy without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from bnpass.ir.graph import Dim
from bnpass.onnx_model import carrying
from bnpass.onnx_model.attributes import opsets
from bnpass.onnx_model.inference import Known, ShapeEngine, ValueTypes, complete, dims
from bnpass.onnx_model.scopes import Place, graphs, placed_bodies

__all__ = ["Known", "LazyTypes", "ValueTypes", "dims", "free_sizes", "infer", "stated",
           "with_open_sizes", "without_weights"]

_KEPT_ELEMENTS = 256  # constants up to this size may be shapes that inference needs

def infer(
    model: onnx.ModelProto, *, demands: bool = False, trust: bool = True
) -> dict[Place, Known]:
    """What is known of the values of the main graph (the empty place) and of every nested body.

    ONNX's own inference first; where it leaves something open, or sizes are computed, what weights,
    shape arithmetic and at last the file's own value_info tell (package ``inference``).

    Args:
        model: its weights are not read.
        demands: also find what layers ask of inputs with free sizes, where all else is known.
        trust: take the file's own word where nothing else tells a shape.
    """
    skeleton = without_weights(model)
    try:
        inferred = carrying.infer_shapes(skeleton)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        inferred = skeleton
    found: dict[Place, Known] = {}
    versions = opsets(model.opset_import)
    _Collector(versions, found, demands, trust).collect(model.graph, inferred.graph, (), None)
    return found


class LazyTypes:
    """Shape inference that runs when the first shape is asked for: many folds need none."""

    def __init__(self, model: onnx.ModelProto, trust: bool = True) -> None:
        self._model, self._trust = model, trust
        self._found: dict[Place, Known] | None = None

    def at(self, place: Place) -> Callable[[], Known]:
        """A function that returns what is known of the values of the graph at a place."""

        def known() -> Known:
            if self._found is None:
                self._found = infer(self._model, trust=self._trust)
            return self._found.get(place) or Known({})

        return known

    @property
    def stated(self) -> tuple[str, ...]:
        """Values of whose shapes only the file's word was there, if any shape was asked for."""
        found = (self._found or {}).values()
        return tuple(sorted(name for known in found for name in known.stated))


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model for shape inference: large constants are inputs, what the file says is left out."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    graph, source = skeleton.graph, model.graph
    graph.name = source.name or "g"
    graph.input.extend(free_sizes(value) for value in source.input)
    graph.output.extend(_shapeless(value) for value in source.output)
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
    for body in graphs(graph):
        del body.value_info[:]  # it comes last, see `infer`
    return skeleton


def stated(value: onnx.ValueInfoProto) -> tuple[Dim, ...] | None:
    """The dimensions that a file states of a value; None where it states not even their number.

    A size of 0 or below, some exporters' word for an unknown one, is None.
    """
    if not value.type.HasField("tensor_type"):
        return None
    return dims(free_sizes(value).type.tensor_type)


def free_sizes(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """An input or output; sizes of 0 and below, which some write for unknown ones, left open."""
    dims = value.type.tensor_type.shape.dim
    if all(d.dim_value > 0 or not d.HasField("dim_value") for d in dims):
        return value
    freed = onnx.ValueInfoProto()
    freed.CopyFrom(value)
    for dim in freed.type.tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value <= 0:
            dim.ClearField("dim_value")
    return freed


def with_open_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in which such sizes are open; itself where it states none.

    Those of its inputs, and then those of all values of the main graph, which follow from them.
    """
    if all(free_sizes(value) is value for value in model.graph.input):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for values in (copy.graph.input, copy.graph.output, copy.graph.value_info):
        for value in values:
            value.CopyFrom(free_sizes(value))
    return copy


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


def _shapeless(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """An output without what the file says of its shape, which comes last, see :func:`infer`."""
    found = onnx.ValueInfoProto()
    found.CopyFrom(value)
    if found.type.HasField("tensor_type"):
        found.type.tensor_type.ClearField("shape")
    return found


@dataclass(frozen=True)
class _Collector:
    """Completes what ONNX's inference has found, graph by graph."""

    versions: Mapping[str, int]
    found: dict[Place, Known]
    demands: bool
    trust: bool

    def collect(
        self, graph: onnx.GraphProto, inferred: onnx.GraphProto, place: Place, outer: Known | None
    ) -> None:
        """Of one graph and the bodies in it."""
        known = self.found[place] = Known(_types(inferred), outer=outer)
        declared = _types(graph)
        for value in graph.input:  # what the format calls the contract with the caller
            known.types.setdefault(value.name, declared.get(value.name) or onnx.TypeProto.Tensor())
        followed = outer is not None and bool(outer.numbers)
        if self.demands or followed or _counts(graph) or not complete(graph, known.types):
            ShapeEngine(graph, known, declared, self.versions, self.trust).run()
        twins = {at: body for node in inferred.node for at, body in placed_bodies(node, place)}
        for node in graph.node:
            for at, body in placed_bodies(node, place):
                self.collect(body, twins.get(at, body), at, known)


def _counts(graph: onnx.GraphProto) -> bool:
    """Whether nodes compute with sizes: then they are followed, even where all shapes are known."""
    return any(node.op_type in ("Shape", "Size") for node in graph.node)


def _types(graph: onnx.GraphProto) -> ValueTypes:
    types: ValueTypes = {}
    for info in (*graph.value_info, *graph.input, *graph.output):
        tensor = info.type.tensor_type
        if info.type.HasField("tensor_type") and (
            tensor.HasField("shape") or info.name not in types
        ):
            types[info.name] = tensor
    for constant in graph.initializer:  # of which inference tells nothing
        if constant.name not in types:
            types[constant.name] = _typed(constant, constant.name).type.tensor_type
    return types
