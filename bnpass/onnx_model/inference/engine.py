"""Shapes and numbers of one graph that ONNX's own inference has left open, node by node.

1. What a node's weights say of its own inputs and outputs (:mod:`layers`).
2. What follows from that: ONNX's rule of the node, on what is known now.
3. Sizes that are computed, with free axes as symbols (:mod:`bnpass.ir.arithmetic`).
4. Last, and marked as such, what the file declares of the output of a node that nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.shape_inference import InferenceError, infer_node_outputs

from bnpass.ir.arithmetic import LARGEST, Numbers, evaluate, is_settled, numbers
from bnpass.ir.extents import Extent, dimension, extent, over, product
from bnpass.ir.graph import Dim
from bnpass.onnx_model.attributes import attribute, attributes, is_onnx
from bnpass.onnx_model.constants import dtype_name
from bnpass.onnx_model.inference import layers

Dims = tuple[Dim, ...]
ValueTypes = dict[str, onnx.TypeProto.Tensor]


@dataclass
class Known:
    """What is known of the values of one graph.

    Attributes:
        types: element type and dimensions by name.
        numbers: entries of small values of whole numbers, by name.
        declared: names of values whose shape rests on what the file says of some value alone.
        stated: those of them of which the file says it.
        outer: of the graph around.
    """

    types: ValueTypes
    numbers: dict[str, Numbers] = field(default_factory=dict)
    declared: set[str] = field(default_factory=set)
    stated: set[str] = field(default_factory=set)
    outer: Known | None = None

    def type(self, name: str) -> onnx.TypeProto.Tensor | None:
        """Of a value of this graph or one around it."""
        found = self.types.get(name)
        return self.outer.type(name) if found is None and self.outer is not None else found

    def dims(self, name: str) -> Dims | None:
        """Dimensions as far as they are known; None while not even their number is."""
        return dims(self.type(name))

    def known(self, name: str) -> Numbers | None:
        """The entries of a value as far as they are known."""
        found = self.numbers.get(name)
        return self.outer.known(name) if found is None and self.outer is not None else found


def dims(tensor: onnx.TypeProto.Tensor | None) -> Dims | None:
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


def complete(graph: onnx.GraphProto, types: Mapping[str, onnx.TypeProto.Tensor]) -> bool:
    """Whether all dimensions of all values are known, by number or name."""
    return all(_complete(types.get(name)) for node in graph.node for name in node.output if name)


def _complete(tensor: onnx.TypeProto.Tensor | None) -> bool:
    found = dims(tensor)
    return found is not None and not any(d is None or is_made_up(d) for d in found)


def _is_fixed(tensor: onnx.TypeProto.Tensor | None) -> bool:
    found = dims(tensor)
    return found is not None and all(isinstance(d, int) for d in found)


def is_made_up(dim: Dim) -> bool:
    """Whether a name is one of those that ONNX's inference gives to sizes it does not know."""
    return isinstance(dim, str) and _MADE_UP.fullmatch(dim) is not None


_MADE_UP = re.compile(r"unk__\d+")


class ShapeEngine:
    """Walks the nodes of one graph once, in order.

    Args:
        graph: whose nodes.
        known: what is known so far; it is filled.
        declared: what the file's own value_info says.
        opsets: domain -> version.
        trust: take what the file says of shapes where nothing else tells them.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        known: Known,
        declared: Mapping[str, onnx.TypeProto.Tensor],
        opsets: Mapping[str, int],
        trust: bool = True,
    ) -> None:
        self.graph, self.known, self._declared, self._opsets = graph, known, declared, opsets
        self._trusts = trust
        self._at_least: dict[str, Dims] = {}
        self._better: set[str] = set()
        self._computed: set[str] = set()
        self._constants = {t.name: t for t in graph.initializer}

    def run(self) -> None:
        """Fill in what can be known."""
        for tensor in self.graph.initializer:
            self._constant(tensor.name, tensor)
        for node in self.graph.node:
            if not all(_is_fixed(self.known.types.get(name)) for name in node.input if name):
                self._demand(node)
        for value in self.graph.input:
            if value.name in self._at_least:
                self._learn(value.name, self._at_least[value.name])
        for node in self.graph.node:
            self.visit(node)

    def visit(self, node: onnx.NodeProto) -> None:
        """Learn what can be known of one node's outputs."""
        if is_onnx(node, "Constant"):
            self._constant_node(node)
            return
        self._compute(node)
        for name in node.output:
            if name in self._at_least and not _complete(self.known.types.get(name)):
                self._learn(name, self._at_least[name])
        if all(_complete(self.known.types.get(name)) for name in node.output if name):
            return
        self._demand(node)
        for name, found in zip(node.output, layers.of_outputs(node, self.known.dims), strict=False):
            self._learn(name, found, self._rests_on(node), self._kind(node, name))
        self._computed_shape(node)
        self._by_onnx(node)
        if self._trusts:
            self._trust(node)

    # --- numbers

    def _constant(self, name: str, tensor: onnx.TensorProto) -> None:
        self.known.types.setdefault(name, _typed(tensor.data_type, tuple(tensor.dims)))
        if tensor.external_data or int(np.prod(tensor.dims, dtype=np.int64)) > LARGEST:
            return
        scalar = int(np.prod(tensor.dims, dtype=np.int64)) == 1
        if tensor.data_type in _COUNTED or (scalar and tensor.data_type in _FLOATS):
            self.known.numbers[name] = numbers(numpy_helper.to_array(tensor))

    def _constant_node(self, node: onnx.NodeProto) -> None:
        item, name = node.attribute[0], node.output[0]
        if item.name == "value":
            self._constant(name, item.t)
        elif item.name in ("value_int", "value_ints"):
            value = np.asarray(onnx.helper.get_attribute_value(item), np.int64)
            self._constant(name, numpy_helper.from_array(value, name))
        elif item.name in ("value_float", "value_floats"):
            value = np.asarray(onnx.helper.get_attribute_value(item), np.float32)
            self._constant(name, numpy_helper.from_array(value, name))

    def _compute(self, node: onnx.NodeProto) -> None:
        """Numbers of the only output, where it holds sizes."""
        if not is_onnx(node) or len(node.output) != 1:
            return
        made = self._of_shape(node) if node.op_type in ("Shape", "Size") else None
        if made is None and node.op_type not in ("Shape", "Size"):
            inputs = [self.known.known(name) if name else None for name in node.input]
            if any(v is not None for v in inputs):
                kind = self.known.type(node.output[0])
                floating = kind is not None and kind.elem_type in _FLOATS
                made = evaluate(node.op_type, _attributes(node), inputs, floating)
        if made is not None:
            self.known.numbers[node.output[0]] = made
            self._computed.add(node.output[0])
            if self._rests_on(node):
                self.known.declared.add(node.output[0])
            if made.ndim == 1 or made.size == 1:
                self._learn(node.output[0], made.shape)

    def _of_shape(self, node: onnx.NodeProto) -> Numbers | None:
        found = self.known.dims(node.input[0])
        if found is None:
            return None
        sizes = [extent(d) for d in found]
        if node.op_type == "Size":
            made = np.empty((), object)
            made[()] = product(sizes)
            return made
        part = sizes[attribute(node, "start", 0) : attribute(node, "end", len(sizes))]
        row = np.empty(len(part), object)
        row[:] = part
        return row

    # --- shapes

    def _demand(self, node: onnx.NodeProto) -> None:
        for name, found in layers.of_inputs(node, self.known.dims).items():
            old = self._at_least.get(name)
            self._at_least[name] = found if old is None else _merged(old, found) or old
            if name in self.known.types:
                self._learn(name, found, kind=self._kind(node, name))

    def _kind(self, node: onnx.NodeProto, name: str) -> int:
        """Element type of what a layer reads or makes: the file's word, or its operands'."""
        known = [self._declared.get(name), *(self.known.type(n) for n in node.input[:2] if n)]
        return next((t.elem_type for t in known if t is not None and t.elem_type), 0)

    def _learn(
        self, name: str, found: Sequence[Dim] | None, declared: bool = False, kind: int = 0
    ) -> None:
        if not name or found is None:
            return
        tensor = self.known.types.get(name)
        old = dims(tensor)
        new = tuple(found) if old is None else _merged(old, tuple(found))
        if new is None or new == old:
            return
        if tensor is not None and not tensor.elem_type:
            tensor = None
        self.known.types[name] = _typed(tensor.elem_type if tensor is not None else kind, new)
        self._better.add(name)
        if declared and _says_more(old, new):
            self.known.declared.add(name)

    def _rests_on(self, node: onnx.NodeProto) -> bool:
        return not self.known.declared.isdisjoint(node.input)

    def _computed_shape(self, node: onnx.NodeProto) -> None:
        rule = _SHAPED.get(node.op_type) if is_onnx(node) else None
        if rule is not None:
            self._learn(node.output[0], rule(self, node), self._rests_on(node))

    def _by_onnx(self, node: onnx.NodeProto) -> None:
        """ONNX's rule of one operator, where more is known of its inputs than when it ran."""
        fresh = [name for name in node.input if name in self._better or name in self._computed]
        twin = node if is_onnx(node) else layers.stand_in(node)
        if twin is None or not (fresh or twin is not node) or _has_graph(node):
            return
        try:
            schema = onnx.defs.get_schema(twin.op_type, self._opsets.get("", 1), "")
            made = infer_node_outputs(
                schema, twin, *self._inputs(twin), opset_imports=_imports(self._opsets)
            )
        except (onnx.defs.SchemaError, onnx.checker.ValidationError, InferenceError, ValueError,
                RuntimeError, TypeError, KeyError):  # fmt: skip
            return  # a KeyError is an input of which no type is known
        typed = all(self._type_is_known(name) for name in twin.input if name)
        for name, found in made.items():
            if found.HasField("tensor_type"):
                kind = found.tensor_type.elem_type if typed else 0
                self._learn(name, dims(found.tensor_type), self._rests_on(node), kind)

    def _type_is_known(self, name: str) -> bool:
        tensor = self.known.type(name)
        return tensor is not None and tensor.elem_type != 0

    def _inputs(
        self, node: onnx.NodeProto
    ) -> tuple[dict[str, onnx.TypeProto], dict[str, onnx.TensorProto]]:
        types, data = {}, {}
        for name in filter(None, node.input):
            tensor = self.known.type(name)
            if tensor is not None:
                types[name] = onnx.TypeProto(tensor_type=tensor)
                if not tensor.elem_type:  # the rule wants one; what it says of types is not kept
                    types[name].tensor_type.elem_type = onnx.TensorProto.FLOAT
            values = self.known.known(name)
            if values is not None and is_settled(values) and tensor is not None:
                kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type or 7)
                data[name] = numpy_helper.from_array(values.astype(kind), name)
            elif name in self._constants and name not in data and values is not None:
                data[name] = self._constants[name]
        return types, data

    def _trust(self, node: onnx.NodeProto) -> None:
        for name in filter(None, node.output):
            said = self._declared.get(name)
            if said is None or dims(said) is None:
                continue
            if name not in self.known.types:
                self.known.types[name] = _typed(said.elem_type, None)
            old = self.known.dims(name)
            if old is None or any(d is None or is_made_up(d) for d in old):
                stated = tuple(d or None for d in dims(said) or ())  # 0 is a word for unknown
                self._learn(name, stated, declared=True)
                if name in self.known.declared:
                    self.known.stated.add(name)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes in the words of the neutral view."""
    attrs = attributes(node)
    if node.op_type == "Cast":
        attrs["to"] = dtype_name(attrs["to"])
    elif node.op_type == "ConstantOfShape" and "value" in attrs:
        attrs["value"] = numpy_helper.to_array(attrs["value"]).item()
    return attrs


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _says_more(old: Dims | None, new: Dims) -> bool:
    """Whether a number of axes or a size is new; a mere name is none."""
    return old is None or any(
        isinstance(b, int) and not isinstance(a, int) for a, b in zip(old, new, strict=True)
    )


def _merged(old: Dims, new: Dims) -> Dims | None:
    """Both together; what is known already stays. None where they contradict each other in rank."""
    if len(old) != len(new):
        return None
    return tuple(_either(a, b) for a, b in zip(old, new, strict=True))


def _either(a: Dim, b: Dim) -> Dim:
    if b is None or isinstance(a, int):
        return a
    return b if a is None or isinstance(b, int) or is_made_up(a) else a


def _typed(kind: int, found: Iterable[Any] | None) -> onnx.TypeProto.Tensor:
    tensor = onnx.TypeProto.Tensor(elem_type=kind)
    if found is not None:
        tensor.shape.SetInParent()
        for size in found:
            dim = tensor.shape.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            elif size is not None:
                dim.dim_value = size
    return tensor


def _imports(opsets: Mapping[str, int]) -> list[onnx.OperatorSetIdProto]:
    return [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]


_T = onnx.TensorProto
_FLOATS = frozenset({_T.FLOAT, _T.DOUBLE, _T.FLOAT16, _T.BFLOAT16})
_COUNTED = frozenset({_T.INT64, _T.INT32, _T.BOOL})


# --- shapes that other values hold


def _reshaped(engine: ShapeEngine, node: onnx.NodeProto) -> Dims | None:
    """0 keeps an axis, -1 is what is left."""
    source, target = engine.known.dims(node.input[0]), engine.known.known(node.input[1])
    if target is None or target.ndim != 1:
        return None
    sizes: list[Extent] = list(target)
    if 0 in sizes and not attribute(node, "allowzero", 0):
        sizes = [
            size if size != 0 else None if source is None or len(source) <= i else extent(source[i])
            for i, size in enumerate(sizes)
        ]
    if -1 in sizes:
        rest = product([size for size in sizes if size != -1])
        total = None if source is None else product([extent(d) for d in source])
        sizes[sizes.index(-1)] = over(total, rest)
    return tuple(dimension(size) for size in sizes)


def _broadcast(engine: ShapeEngine, node: onnx.NodeProto) -> Dims | None:
    """Expand: an axis of 1 takes the other's size."""
    source, target = engine.known.dims(node.input[0]), engine.known.known(node.input[1])
    if source is None or target is None or target.ndim != 1:
        return None
    rank = max(len(source), len(target))
    a = [1] * (rank - len(source)) + [extent(d) for d in source]
    b = [1] * (rank - len(target)) + list(target)
    return tuple(dimension(_wider(x, y)) for x, y in zip(a, b, strict=True))


def _wider(a: Extent, b: Extent) -> Extent:
    if a == 1 or a == b:
        return b
    if b == 1 or isinstance(a, int):
        return a
    return b if isinstance(b, int) else None


def _filled(engine: ShapeEngine, node: onnx.NodeProto) -> Dims | None:
    target = engine.known.known(node.input[0])
    return None if target is None or target.ndim != 1 else tuple(map(dimension, target))


_SHAPED = {"Reshape": _reshaped, "Expand": _broadcast, "ConstantOfShape": _filled}
