"""Deploy in float16 or bfloat16: weights, arithmetic and value types of a model, narrowed.

Every value of type float has a version in float32, in the narrow type, or both; a node asks for its
inputs in the type that it computes in, and a Cast is written where that version does not exist yet:

1. a node computes in the narrow type when ONNX's schema of its opset allows that;
2. it stays in float32 when the schema does not (the scales of Resize, Range), when it is a
   BatchNormalization or a quantisation, or when it computes with shapes (2049 is no float16);
3. where a layer with weights has no such type in the model's opset (Conv has bfloat16 since opset
   22), all arithmetic stays in float32 and only the weights are stored in the narrow type.

Weights are rounded from the folded float32 ones: together with the rounding of the fold's float64
at most 0.5001 units in the last place. What does not fit is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx.inliner

from bnpass.errors import UnsupportedError, UsageError, close_matches
from bnpass.frontends.onnx.half.values import (
    FLOAT,
    KINDS,
    SMALL,
    Values,
    Versions,
    cast,
    label,
)
from bnpass.onnx_model import shapes
from bnpass.onnx_model.attributes import attributes, opset_of, opsets
from bnpass.onnx_model.messages import overwrite
from bnpass.onnx_model.scopes import Place, nodes_within, placed_bodies

ALIASES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16"}

# Their narrow form is none: statistics, a type of its own, scales that have to be float32.
_WIDE = frozenset(
    {"BatchNormalization", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear",
     "DynamicQuantizeLinear"}
)  # fmt: skip
_FLOAT_CONSTANTS = frozenset({"value_float", "value_floats"})


@dataclass
class HalfModel:
    """A narrowed model and what was done.

    Attributes:
        model: the new model.
        dtype: ``"float16"`` or ``"bfloat16"``.
        storage: case 3: only the weights are narrow; the reason, or an empty string.
        kept: nodes that stay in float32, with the reason.
        vanished: weights that were not zero and are now.
    """

    model: onnx.ModelProto
    dtype: str
    storage: str = ""
    kept: dict[str, str] = field(default_factory=dict)
    vanished: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what was done; JSON-able."""
        return {"dtype": self.dtype, "storage": self.storage, "kept": self.kept,
                "vanished": self.vanished}  # fmt: skip


def half_type(name: str) -> str:
    """The full name of a narrow type: ``fp16`` is ``float16``.

    Raises:
        UsageError: it is none.
    """
    full = ALIASES.get(name, name)
    if full not in KINDS:
        known = [*KINDS, *ALIASES]
        raise UsageError(f"no such narrow type: {name!r}",
                         close_matches(name, known) or "choose fp16 or bf16")  # fmt: skip
    return full


def to_half(model: onnx.ModelProto, to: str, *, io: bool = False) -> HalfModel:
    """Convert a float32 model to a narrow type.

    Args:
        model: the model, with all of its data; it is changed in place unless it has functions.
        to: ``"float16"`` or ``"bfloat16"``, or ``"fp16"``, ``"bf16"``.
        io: also the graph's inputs and outputs; they stay float32 otherwise, behind Casts.

    Raises:
        RefusedError: a weight does not fit the type; the message names its node.
        UnsupportedError: the type of a value cannot be told, or it is no tensor.
    """
    dtype = half_type(to)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return _Narrower(model, dtype, io).run()


class _Narrower:
    """One conversion."""

    def __init__(self, model: onnx.ModelProto, dtype: str, io: bool) -> None:
        self.model, self.io = model, io
        self.kind = KINDS[dtype]
        self.result = HalfModel(model, dtype)
        self.versions = Versions(model, dtype)
        self.opsets = {**opsets(model.opset_import), "": opset_of(model)}
        self.types = {place: known.types for place, known in shapes.infer(model).items()}
        self.result.storage = self._missing_layer()
        self.versions.storage = bool(self.result.storage)

    def run(self) -> HalfModel:
        outside = self.kind if self.io and not self.result.storage else FLOAT
        self._graph(self.model.graph, (), None, outside)
        self.result.vanished = self.versions.vanished
        return self.result

    # --- which nodes compute in what

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        return _schema(node.op_type, self.opsets.get(domain, 1), domain)

    def _allowed(self, parameters: Any, index: int) -> bool:
        if not parameters:
            return False
        name = f"tensor({self.result.dtype})"
        return name in parameters[min(index, len(parameters) - 1)].types

    def _missing_layer(self) -> str:
        """Case 3: a layer with weights, or with bodies, that has no such type."""
        weights = {t.name for t in self.model.graph.initializer
                   if t.data_type == FLOAT and len(t.dims) > 1}  # fmt: skip
        for node in nodes_within(self.model.graph.node):
            schema = self._schema(node)
            layer = any(n in weights for n in node.input[1:]) and node.op_type not in _WIDE
            if schema is None or not (layer or any(placed_bodies(node))):
                continue
            if not self._allowed(schema.outputs, 0):
                version = self.opsets[""]
                return f"{node.op_type} of opset {version} has no {self.result.dtype}"
        return ""

    def _reason_wide(self, node: onnx.NodeProto, scope: Values) -> str:
        """Why a node computes in float32; empty if it does not."""
        if self.result.storage:
            return self.result.storage
        schema = self._schema(node)
        if schema is None:
            return f"{node.domain}.{node.op_type} is not known"
        if any(placed_bodies(node)):
            return ""
        if node.op_type in _WIDE or {"dtype", "output_dtype"} & set(schema.attributes):
            return f"{node.op_type} is better kept in float32"
        for parameters, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
            for index, name in enumerate(names):
                formal = parameters[min(index, len(parameters) - 1)]
                bound = not formal.type_str.startswith("tensor(")
                if bound and self._is_float(name, scope) and not self._allowed(parameters, index):
                    version = self.opsets[""]
                    return f"{node.op_type} of opset {version} has no {self.result.dtype}"
        return ""

    def _of_shapes(self, node: onnx.NodeProto, scope: Values) -> bool:
        """Whether a node computes with shapes and small constants alone."""
        if node.op_type in ("Shape", "Size"):
            return True
        read = [name for name in node.input if name]
        if not any(scope.known(name, "shapes") for name in read) or any(placed_bodies(node)):
            return False
        return all(scope.known(n, "shapes") or self._small(n, scope) for n in read)

    def _small(self, name: str, scope: Values) -> bool:
        if not scope.known(name, "fixed"):
            return False
        owner = scope.owner(name)
        tensor = owner.tensors.get(name) if owner is not None else None
        return tensor is None or int(np.prod(tensor.dims)) <= SMALL

    def _is_float(self, name: str, scope: Values) -> bool:
        """Whether a value had type float; it has been read or written before."""
        if not name:
            return False
        if scope.owner(name) is not None:
            return True
        place: Values | None = scope
        while place is not None:
            if name in place.types:
                return place.types[name].elem_type == FLOAT
            place = place.outer
        return False

    # --- graphs

    def _graph(
        self, graph: onnx.GraphProto, place: Place, outer: Values | None, edge: int
    ) -> None:
        """Convert a graph whose inputs and outputs of type float become ``edge``."""
        self._refuse_others(graph)
        scope = Values(graph, self.types.get(place, {}), outer)
        self._known(scope, edge)
        ends = {o.name: edge for o in graph.output if o.type.tensor_type.elem_type == FLOAT
                or self._is_float(o.name, scope)}  # fmt: skip
        for name in ends:
            if name in scope.tensors:  # a weight that is an output keeps its name
                self.versions.version(name, edge, scope, None)
        for node in list(graph.node):
            self._node(node, scope, ends, place)
        for output in graph.output:
            if output.name in ends:
                self._output(output, scope, edge)
        self._finish(scope)

    def _known(self, scope: Values, edge: int) -> None:
        """Note the weights and the inputs of a graph; defaults that callers override are inputs."""
        graph = scope.graph
        overridable = self.model.ir_version >= 4 or scope.outer is not None
        given = {i.name for i in graph.input} if overridable else set()
        for tensor in graph.initializer:
            if tensor.data_type != FLOAT:
                continue
            if tensor.name not in given:
                scope.versions[tensor.name], scope.tensors[tensor.name] = {}, tensor
            elif edge != FLOAT:
                overwrite(tensor, self.versions.rounded(tensor, None))
        for value in graph.input:
            if value.type.tensor_type.elem_type == FLOAT and value.name not in scope.tensors:
                scope.versions[value.name] = {edge: value.name}

    def _refuse_others(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            if value.type.WhichOneof("value") not in (None, "tensor_type"):
                raise UnsupportedError(f"{value.name!r} is no tensor",
                                       "only graphs of tensors can be narrowed")  # fmt: skip
        if any(s.values.data_type == FLOAT for s in graph.sparse_initializer):
            raise UnsupportedError("the model has sparse weights", "make them dense first")

    def _node(
        self, node: onnx.NodeProto, scope: Values, ends: dict[str, int], place: Place
    ) -> None:
        if node.op_type == "Constant" and self._constant(node, scope):
            return
        self._complete(node, scope)
        if node.op_type == "ConstantOfShape" and not self.result.storage:
            _within(node, self.versions.largest)
        shapely = self._of_shapes(node, scope)
        reason = "computes with shapes" if shapely else self._reason_wide(node, scope)
        schema = self._schema(node)
        found = [name for name in node.input if self._is_float(name, scope)]
        for index, name in enumerate(node.input):
            if self._is_float(name, scope):
                fits = schema is not None and self._allowed(schema.inputs, index)
                wanted = FLOAT if reason or not fits else self.kind
                node.input[index] = self.versions.version(name, wanted, scope, node)
        edge = FLOAT if self.result.storage else self.kind
        for at, body in placed_bodies(node, place):
            self._graph(body, at, scope, edge)
        if node.op_type == "Cast" and not reason:
            _retarget(node, self.kind)
        scope.nodes.append(node)
        floats = self._outputs(node, scope, ends, reason, shapely)
        if reason and not shapely and not self.result.storage and (found or floats):
            self.result.kept[node.name or node.output[0]] = reason

    def _outputs(
        self, node: onnx.NodeProto, scope: Values, ends: dict[str, int], reason: str, shapely: bool
    ) -> bool:
        """Note the versions that a node makes; an output of the graph keeps name and type."""
        schema = self._schema(node)
        any_float = False
        for index, name in enumerate(node.output):
            if shapely and name:
                scope.shapes.add(name)
            if not self._is_float(name, scope):
                continue
            any_float = True
            fits = schema is not None and self._allowed(schema.outputs, index)
            made = FLOAT if reason or not fits else self.kind
            scope.versions[name] = {made: name}
            if ends.get(name, made) != made:
                node.output[index] = inner = self.versions.fresh(f"{name}_{label(made)}")
                scope.versions[name] = {made: inner, ends[name]: name}
                scope.nodes.append(cast(inner, name, ends[name]))
        return any_float

    def _complete(self, node: onnx.NodeProto, scope: Values) -> None:
        """Find the types of outputs that inference has left out."""
        for index, name in enumerate(node.output):
            held = scope.types.get(name)
            if not name or (held is not None and held.elem_type):
                continue
            guess = self._guessed(node, index, scope)
            if not guess:
                raise UnsupportedError(
                    f"the type of {name!r} ({node.op_type} {node.name!r}) cannot be told",
                    "add it to the model's value_info, e.g. with onnx.shape_inference",
                )
            scope.types[name] = onnx.TypeProto.Tensor(elem_type=guess)

    def _guessed(self, node: onnx.NodeProto, index: int, scope: Values) -> int:
        """The element type of an output that inference has left out; 0 if that cannot be told."""
        schema = self._schema(node)
        if schema is None or not schema.outputs:
            return 0
        wanted = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
        for place, name in enumerate(node.input):
            formal = schema.inputs[min(place, len(schema.inputs) - 1)]
            if name and formal.type_str == wanted:
                return self._element(name, scope)
        return 0

    def _element(self, name: str, scope: Values) -> int:
        """The element type that a value had; 0 if it is not known."""
        if self._is_float(name, scope):
            return FLOAT
        place: Values | None = scope
        while place is not None:
            if name in place.types:
                return int(place.types[name].elem_type)
            if name in place.fixed:
                held = {t.name: t.data_type for t in place.graph.initializer}
                return int(held.get(name, 0))
            place = place.outer
        return 0

    def _constant(self, node: onnx.NodeProto, scope: Values) -> bool:
        """Take a Constant of type float; it is written again where it is read."""
        scope.fixed.add(node.output[0])
        held = attributes(node)
        tensor = held.get("value")
        for name in _FLOAT_CONSTANTS & held.keys():
            array = np.array(held[name], np.float32)
            tensor = onnx.numpy_helper.from_array(array, node.output[0])
        if tensor is None or tensor.data_type != FLOAT:
            return False
        scope.versions[node.output[0]] = {}
        scope.tensors[node.output[0]], scope.constants[node.output[0]] = tensor, node
        return True

    def _output(self, output: onnx.ValueInfoProto, scope: Values, edge: int) -> None:
        """Graph outputs that are constants or inputs; all others have been seen to."""
        versions = scope.versions.get(output.name)
        if versions is not None and not versions:
            self.versions.version(output.name, edge, scope, None)
        if output.type.tensor_type.elem_type == FLOAT:
            output.type.tensor_type.elem_type = edge

    def _finish(self, scope: Values) -> None:
        graph = scope.graph
        for name, node in scope.constants.items():
            if not scope.versions[name]:
                scope.nodes.append(node)
        del graph.node[:]
        graph.node.extend(scope.nodes)
        for value in (*graph.value_info, *graph.input):
            for kind, name in scope.versions.get(value.name, {}).items():
                if name == value.name:
                    value.type.tensor_type.elem_type = kind


@lru_cache(maxsize=512)
def _schema(op: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


def _within(node: onnx.NodeProto, largest: float) -> None:
    """A ConstantOfShape beyond the narrow type's range (a mask) is as far as that goes."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type == FLOAT:
            array = onnx.numpy_helper.to_array(attribute.t)
            finite = np.isfinite(array) & (np.abs(array) > largest)
            if finite.any():
                overwrite(attribute.t, np.where(finite, np.clip(array, -largest, largest), array))


def _retarget(node: onnx.NodeProto, kind: int) -> None:
    """A Cast to float32 is one to the narrow type."""
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = kind
