"""ModelProto -> the neutral view: one Graph for the main graph and one for every nested body."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from bnpass.errors import InputError
from bnpass.frontends.onnx.normalize import Context, normalize
from bnpass.ir.arithmetic import is_settled
from bnpass.ir.graph import Constant, Dim, Graph, Op
from bnpass.onnx_model import shapes
from bnpass.onnx_model.attributes import OLDEST_OPSET, is_onnx, node_name, opset_of
from bnpass.onnx_model.constants import (
    array_constant,
    dtype_name,
    graph_constants,
    like,
    node_constants,
)
from bnpass.onnx_model.faults import check_functions_norms
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import Place, captured_by, has_bodies, placed_bodies
from bnpass.onnx_model.validity import HINT, check_graph, norm_fault, not_text

OVERRIDABLE = "an input with a default, which callers may override (--freeze-inputs fixes it)"


@dataclass(eq=False)
class Scope:
    """One GraphProto with its view.

    Attributes:
        proto: the GraphProto inside the model.
        graph: its neutral view.
        nodes: the NodeProto of every operator, by operator name.
        initializers: the tensors of the graph's initializers by name, sparse ones not among them.
        outer: the scope around a nested body.
        place: where the body is.
        path: names of the operators whose bodies lead here, for reports.
        readers: how often each of its names is read, in the bodies inside of it too.
        released: its names that some reader has left.
        settled: the BatchNormalizations of constants, by name: they are no operators.
    """

    proto: onnx.GraphProto
    graph: Graph
    nodes: dict[str, onnx.NodeProto]
    initializers: dict[str, onnx.TensorProto]
    outer: Scope | None = None
    place: Place = ()
    path: str = ""
    readers: Counter[str] = field(default_factory=Counter)
    released: set[str] = field(default_factory=set)
    settled: dict[str, onnx.NodeProto] = field(default_factory=dict)

    @cached_property
    def _own(self) -> set[str]:
        """Names that a body defines: another body beside it may use them as well."""
        made = {name for node in self.proto.node for name in node.output}
        return made.union(i.name for i in self.proto.input)

    def owner(self, name: str) -> Scope:
        """The scope that a name read here belongs to."""
        scope = self
        while scope.outer is not None:
            if name in scope._own or name in scope.initializers:
                break
            scope = scope.outer
        return scope


@dataclass(eq=False)
class Reading:
    """A model with the views of all of its graphs, the main one first.

    Attributes:
        model: the model; edits are applied to it in place.
        opset: the version of ONNX's own operators.
        settle: sizes that are the same in every run are constants.
        scopes: the main graph and every nested body.
    """

    model: OnnxModel
    opset: int
    settle: bool = True
    scopes: list[Scope] = field(default_factory=list)

    @property
    def main(self) -> Scope:
        """The scope of the main graph."""
        return self.scopes[0]


def checked_opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses.

    Raises:
        InputError: it is older than 7.
    """
    version = opset_of(model)
    if version < OLDEST_OPSET and model.opset_import:
        raise InputError(
            f"the model uses opset {version}; bnpass reads opset {OLDEST_OPSET} and newer",
            "convert it first: onnx.version_converter.convert_version(model, 13)",
        )
    return version


def read(
    model: OnnxModel | onnx.ModelProto, *, freeze_inputs: bool = False, settle: bool = True
) -> Reading:
    """Build the views of a model.

    Args:
        model: the model; it is referred to, not copied.
        freeze_inputs: take defaults that callers may override for constants.
        settle: take sizes that are the same in every run, as the model says, for constants.

    Raises:
        InputError: a value is made twice, nodes or functions wait for each other, a tensor's
            bytes do not fit its shape, an attribute has another type, or a node's constants
            cannot be read.
        BudgetError: functions, or constants computed from others, are beyond their limits.
    """
    model = OnnxModel.of(model)
    model.forget()
    reading = Reading(model, checked_opset(model.proto), settle)
    check_functions_norms(model.proto)
    _read_scope(reading, model.proto.graph, (), None, "", freeze_inputs)
    return reading


def _read_scope(
    reading: Reading,
    proto: onnx.GraphProto,
    place: Place,
    outer: Scope | None,
    path: str,
    freeze_inputs: bool,
) -> None:
    check_graph(proto, reading.opset)
    builder = _Builder(reading, proto, place, outer, freeze_inputs)
    for node in proto.node:
        builder.add(node)
    scope = builder.finish(path)
    reading.scopes.append(scope)
    for name in builder.with_bodies:
        for at, body in placed_bodies(scope.nodes[name], place):
            _read_scope(reading, body, at, scope, f"{path}{name}/", freeze_inputs)


def _named_twice(proto: onnx.GraphProto) -> InputError:
    """Runtimes do not agree on which of the two they take."""
    name, _ = Counter(t.name for t in proto.initializer).most_common(1)[0]
    return InputError(
        f"not a valid ONNX model: two initializers are named {name!r}",
        "onnx.checker.check_model(model) says more; export it again",
    )


class _Builder:
    """Collects what a Graph needs while it walks the nodes of one GraphProto."""

    def __init__(
        self,
        reading: Reading,
        proto: onnx.GraphProto,
        place: Place,
        outer: Scope | None,
        freeze_inputs: bool,
    ) -> None:
        self.model, self.proto, self.outer = reading.model, proto, outer
        self._types = reading.model.known(place)
        self._settle = reading.settle
        self.place = place
        self.with_bodies: list[str] = []
        self.reads: list[str] = []
        fixed = freeze_inputs or reading.model.proto.ir_version < 4 or outer is not None
        self.initializers = {t.name: t for t in proto.initializer}
        if len(self.initializers) < len(proto.initializer):
            raise _named_twice(proto)
        self.overridable = {
            i.name for i in (() if fixed else proto.input) if i.name in self.initializers
        }
        self.constants = graph_constants(self.initializers, self.overridable, self.model)
        if outer is not None:
            hidden = {name for node in proto.node for name in node.output}
            hidden |= {i.name for i in proto.input}
            for name, constant in outer.graph.constants.items():
                if name not in hidden:
                    self.constants.setdefault(name, constant)
        self.ops: list[Op] = []
        self.settled: dict[str, onnx.NodeProto] = {}
        self._sizes: set[str] = set()  # values that are computed from sizes
        self.nodes: dict[str, onnx.NodeProto] = {}
        self._alike: dict[str, int] = {}  # by name: how many nodes have it
        self._widths: dict[str, int] = {}  # channels that convolutions make, by value
        self.context = Context(reading.opset, self.constants.get, self.shape, self.dtype, self.made)

    @property
    def types(self) -> shapes.ValueTypes:
        return self._types().types

    def shape(self, name: str) -> tuple[Dim, ...] | None:
        constant = self.constants.get(name)
        if constant is not None:
            return constant.shape
        if name not in self.types and self.outer is not None:
            return self.outer.graph.shape(name)
        return shapes.dims(self.types.get(name))

    def dtype(self, name: str) -> str | None:
        constant = self.constants.get(name)
        if constant is not None:
            return constant.dtype
        if name not in self.types:
            return self.outer.graph.dtype(name) if self.outer is not None else None
        return dtype_name(self.types[name].elem_type)

    def made(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = array_constant(name, array)
        return name

    def add(self, node: onnx.NodeProto) -> None:
        inputs, outputs = node.input[:], node.output[:]
        self.reads += inputs
        if is_onnx(node, "BatchNormalization"):
            self._check_norm(node, inputs)
        found = node_constants(node, inputs, self.constants, self.context.opset, self.model)
        if found:
            self.constants.update((c.name, c) for c in found)
            if is_onnx(node, "BatchNormalization"):
                self.settled[node_name(node)] = node
            return
        settled = self._settled(node)
        if settled is None:
            kind, attrs = normalize(node, inputs, self.context)
        else:
            self.constants[settled.name] = settled
            kind, attrs = "Shape", dict[str, Any]()  # it sees no numbers of what else it reads
        name = self._name(node)
        inner: tuple[str, ...] = ()
        if has_bodies(node):
            inner = tuple(sorted(captured_by(node)))
            self.with_bodies.append(name)
        if kind == "Conv" and (weight := self.constants.get(inputs[1])) is not None:
            self._widths[outputs[0]] = weight.shape[0] if weight.shape else 0
        self.ops.append(Op(name, kind, inputs, outputs, attrs, inner))
        self.nodes[name] = node

    def _settled(self, node: onnx.NodeProto) -> Constant | None:
        """A node's output where it is the same in every run although not all that it reads is.

        Where only the type or the shape of that matters, and is known.
        """
        if len(node.output) != 1 or not is_onnx(node):
            return None
        name = node.output[0]
        if node.op_type == "CastLike":
            constant, kind = self.constants.get(node.input[0]), self.dtype(node.input[1])
            return None if constant is None or kind is None else like(name, constant, kind)
        if not self._settle:
            return None
        if node.op_type not in ("Shape", "Size") and self._sizes.isdisjoint(node.input):
            return None
        known = self._types()
        values = known.numbers.get(name)
        if values is None:
            return None
        self._sizes.add(name)
        kind = self.dtype(name) or "int64"
        if name in known.declared or not is_settled(values) or kind not in ("int64", "int32"):
            return None
        return array_constant(name, values.astype(kind))

    def _check_norm(self, node: onnx.NodeProto, inputs: list[str]) -> None:
        """Parameters that are text or do not fit make no BatchNormalization, for no pass."""
        shapes = {}
        for name in inputs[1:5]:
            tensor, constant = self.initializers.get(name), self.constants.get(name)
            if tensor is not None and tensor.data_type == onnx.TensorProto.STRING:
                raise InputError(f"not a valid ONNX model: {name!r}, a parameter of "
                                 f"{node_name(node)!r}, is text", HINT)
            if tensor is not None:
                shapes[name] = tuple(tensor.dims)
            elif constant is not None:
                shapes[name] = constant.shape
        fault = norm_fault(node, shapes) or norm_fault(node, shapes, self._channels(inputs))
        if fault is not None:
            raise InputError(f"not a valid ONNX model: {fault}", HINT)

    def _channels(self, inputs: list[str]) -> int | None:
        """Of what a BatchNormalization reads; None where only the file's word is there for it."""
        if inputs and inputs[0] in self._widths:
            return self._widths[inputs[0]]  # the shapes of the whole graph can wait
        shape = self.shape(inputs[0]) if inputs else None
        if shape is None or len(shape) < 2 or inputs[0] in self._types().declared:
            return None
        return shape[1] if isinstance(shape[1], int) else None

    def _name(self, node: onnx.NodeProto) -> str:
        base = node.name or next((o for o in node.output if o), node.op_type)
        if type(base) is not str or type(node.op_type) is not str:
            raise not_text(base if type(base) is not str else node.op_type)
        n = self._alike.get(base, 0) + 1
        while (name := base if n == 1 else f"{base}#{n}") in self.nodes:
            n += 1
        self._alike[base] = n
        return name

    def finish(self, path: str) -> Scope:
        inputs = [i.name for i in self.proto.input if i.name not in self.constants]
        outputs = [o.name for o in self.proto.output]
        pinned = dict.fromkeys(self.overridable, OVERRIDABLE)
        graph = Graph(self.ops, inputs, outputs, self.constants, self.shape, self.dtype, pinned)
        scope = Scope(self.proto, graph, self.nodes, self.initializers, self.outer, self.place,
                      path, settled=self.settled)  # fmt: skip
        if self.outer is None:
            scope.readers.update(self.reads)
            scope.readers.update(outputs)
        else:
            for name in (*self.reads, *outputs):
                scope.owner(name).readers[name] += 1
        return scope
