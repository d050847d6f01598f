"""The walk over an ONNX graph that builds the torch.fx graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch

from bnpass.errors import UnsupportedError
from bnpass.importer import registry
from bnpass.importer.functions.common import host_tensor
from bnpass.importer.functions.shape import repeat_like
from bnpass.importer.gates import Order, gate_orders
from bnpass.importer.given import with_constants
from bnpass.importer.graphs import steering
from bnpass.importer.naming import identifier
from bnpass.importer.node import ImportedNode, NotExactError
from bnpass.importer.schema import output_dtypes
from bnpass.importer.sizes import evaluate, shape_of_result
from bnpass.importer.store import Store
from bnpass.importer.values import Const, Sizes, Traced, Value, dense, torch_dtype, type_name
from bnpass.onnx_model.attributes import attribute, value_of
from bnpass.onnx_model.scopes import Place
from bnpass.onnx_model.shapes import Known, infer
from bnpass.passes.free_batch import BatchPlan, Repeat

STRUCTURE = frozenset({"Constant", "If"})
"""Operators that the walk itself takes apart: they are not in the table."""

# Not computed ahead even on constants: they behave differently in training.
_LIVE = frozenset({"Dropout", "BatchNormalization"})


class Importer:
    """Builds a torch.fx graph from an ONNX graph, node by node.

    Args:
        opsets: domain -> opset of the model.
        plan: what the freed batch changes.
        folder: of a model that to_torch has read itself: it may lose the bytes of a tensor once it
            is converted, and its initializers may lie in other files.
        shared: names on tensors of Constant nodes that stand for one constant of a function.
        given: values that inputs have in every run, by name.
    """

    def __init__(
        self,
        opsets: Mapping[str, int],
        plan: BatchPlan | None = None,
        folder: Path | None = None,
        shared: frozenset[str] = frozenset(),
        given: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.graph = torch.fx.Graph()
        self.store = Store(self.graph)
        self._opsets = opsets
        self._plan = plan or BatchPlan()
        self._overrides = self._plan.overrides
        self._folder = folder
        self._release = folder is not None
        self._shared = shared
        self._given = given or {}
        self._of_functions: dict[str, Const] = {}
        self._values: dict[str, Value] = {}
        self._problems: list[str] = []
        self._lost: set[str] = set()
        self._source: onnx.ModelProto | None = None
        self._numeric: set[str] = set()
        self._gates: Mapping[str, Order] = {}
        self._known: Mapping[Place, Known] | None = None

    def run(self, model: onnx.ModelProto) -> tuple[list[str], list[str]]:
        """Import the model's graph; return the names of its inputs and outputs.

        Raises:
            UnsupportedError: naming every node that cannot be imported exactly.
        """
        self._source = model
        graph = model.graph
        check_ops(graph.node, self._opsets)
        self._numeric = steering(graph)
        self._gates = gate_orders(graph, self._is_ours)
        inputs = self._add_inputs(graph)
        self.add_constants(graph)
        self.add_nodes(graph.node)
        if self._problems:
            raise UnsupportedError(
                f"cannot import exactly: {'; '.join(self._problems)}",
                "register a translation of your own with bnpass.importer.register_op",
            )
        results = [self._result(o.name) for o in graph.output]
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        discard(self.store.idle)
        return inputs, [o.name for o in graph.output]

    # -- values ------------------------------------------------------------------------------------

    def _add_inputs(self, graph: onnx.GraphProto) -> list[str]:
        constants = {i.name for i in graph.initializer}
        names = []
        for value in graph.input:
            if value.name in constants:  # the format of IR version 3 lists constants here too
                continue
            if value.name in self._given:
                self._values[value.name] = Const(tensor=self._given[value.name])
                continue
            if not value.type.HasField("tensor_type"):
                self._problems.append(f"input {value.name!r} is no tensor")
            elem = value.type.tensor_type.elem_type
            if torch_dtype(elem) is None:
                self._problems.append(f"input {value.name!r} has the type {type_name(elem)}")
            node = self.graph.placeholder(identifier(value.name))
            node.meta["onnx"] = (value.name, "", (value.name,))
            self._values[value.name] = Traced(node, torch_dtype(elem))
            names.append(value.name)
        return names

    def add_constants(self, graph: onnx.GraphProto) -> None:
        """Make the initializers of a graph known."""
        for sparse in graph.sparse_initializer:
            self._constant(Const(sparse.values.name, dense(sparse)))
        for proto in graph.initializer:
            const = Const(proto.name, proto, release=self._release, folder=self._folder)
            self._constant(const)

    def _constant(self, const: Const, name: str = "") -> None:
        name = name or const.name
        const.numeric |= name in self._numeric
        order = self._gates.get(name, ())
        if const.gates and const.gates != order:
            raise NotExactError("calls of its function read its gates in different orders")
        if order and not const.gates:
            const.arrange(order)
        self._values[name] = const

    def _of_node(self, node: onnx.NodeProto) -> Const:
        """The constant of a Constant node: one for all the calls of a function that holds it."""
        const = _constant(node, self._release)
        name = node.attribute[0].t.name
        if name not in self._shared:
            return const
        const.name = name
        return self._of_functions.setdefault(name, const)

    def value(self, name: str) -> Value | None:
        """A value that is known so far."""
        return self._values.get(name)

    def known(self, name: str) -> Known | None:
        """What is known, of one graph's values, where a value of that name is among them.

        By shape inference (done once, without the weights).
        """
        if self._known is None:
            assert self._source is not None
            model = self._source
            self._known = infer(with_constants(model, self._given) if self._given else model)
        graphs = self._known.values()
        return next((k for k in graphs if name in k.types or name in k.numbers), None)

    def _result(self, name: str) -> torch.fx.Node:
        return self._result_of(self._values[name], name)

    def _result_of(self, value: Value, name: str) -> torch.fx.Node:
        if isinstance(value, Traced):
            return value.node
        if isinstance(value, Sizes):
            entries = value.entries[0] if value.scalar else list(value.entries)
            return self.graph.call_function(host_tensor, (entries, value.dtype))
        return self.store.read(value, name, trainable=value.is_weight)

    # -- nodes -------------------------------------------------------------------------------------

    def add_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Translate nodes in the order of the file, which is topological."""
        for node in nodes:
            if self._lost.intersection(node.input):
                self._lost.update(node.output)
                continue
            try:
                self._add_node(node)
            except (NotExactError, UnsupportedError) as error:
                opset = self._opsets.get(node.domain, 0)
                self._problems.append(f"{_title(node)} (opset {opset}): {error}")
                self._lost.update(node.output)

    def _add_node(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant" and not node.domain:
            self._constant(self._of_node(node), node.output[0])
            return
        if node.op_type == "If" and not node.domain:
            self._add_branch(node)
            return
        op = self._op(node)
        handler = registry.find(node.domain, node.op_type, op.opset)
        assert handler is not None, "check_ops has seen every node"
        try:
            made = evaluate(op, self._rank) if registry.is_ours(handler) and not op.fold else None
            self._bind(op, handler(op) if made is None else made)
        except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
            if not op.fold and not isinstance(error, ZeroDivisionError):
                raise  # no fault of the model's numbers
            raise NotExactError(f"it fails on its constants: {error}") from error

    def _rank(self, name: str) -> int | None:
        known = self.known(name)
        dims = None if known is None else known.dims(name)
        return None if dims is None else len(dims)

    def _is_ours(self, node: onnx.NodeProto) -> bool:
        handler = registry.find(node.domain, node.op_type, self._opsets.get(node.domain, 1))
        return handler is not None and registry.is_ours(handler)

    def _op(self, node: onnx.NodeProto) -> ImportedNode:
        opset = self._opsets.get(node.domain, 1)
        inputs = [self._input(node, i) for i in range(len(node.input))]
        while inputs and inputs[-1] is None:
            inputs.pop()
        op = ImportedNode(node, opset, inputs, self.graph, self.store)
        op.fold = op.fold and node.op_type not in _LIVE
        return op

    def _input(self, node: onnx.NodeProto, index: int) -> Value | None:
        name, use = node.input[index], (node.output[0], index)
        if use in self._overrides:
            override = self._overrides[use]
            return None if override is None else Const(tensor=torch.from_numpy(override))
        if not name:
            return None
        if use in self._plan.repeated:
            return self._repeated(node, self._values[name], self._plan.repeated[use])
        return self._values[name]

    def _repeated(self, node: onnx.NodeProto, value: Value, repeat: Repeat) -> Value:
        like = self._values[node.input[repeat.like]]
        assert isinstance(like, Traced)
        source = self._result_of(value, node.output[0])
        args = (source, like.node, repeat.axis)
        made = self.graph.call_function(repeat_like, args)
        made.meta["onnx"] = (node.name, node.op_type, tuple(node.output))
        return Traced(made, value.dtype)

    def _bind(self, op: ImportedNode, result: Any) -> None:
        results = result if isinstance(result, tuple | list) else (result,)
        known = [None if v is None else v.dtype for v in op.inputs]
        dtypes = output_dtypes(op.node, op.opset, known)
        for name, made, dtype in zip(op.node.output, results, dtypes, strict=False):
            if isinstance(made, Const | Traced | Sizes):
                self._values[name] = made
                if isinstance(made, Const) and made.name == name:  # a weight of its own
                    made.arrange(self._gates.get(name, ()))
            elif isinstance(made, torch.Tensor):
                self._values[name] = Const(tensor=made)
            elif name:
                host = op.host or op.node.op_type in ("Shape", "Size")
                self._values[name] = Traced(made, dtype, host, shape_of_result(op))

    def _add_branch(self, node: onnx.NodeProto) -> None:
        from bnpass.importer.branches import condition

        assert self._source is not None
        taken = condition(self, node, self._source)
        wanted = "then_branch" if taken else "else_branch"
        body: onnx.GraphProto = attribute(node, wanted)
        check_ops(body.node, self._opsets)
        self.add_constants(body)
        self.add_nodes(body.node)
        for outer, inner in zip(node.output, body.output, strict=True):
            if inner.name in self._lost:
                self._lost.add(outer)
            else:
                self._values[outer] = self._values[inner.name]


def discard(nodes: Iterable[torch.fx.Node]) -> None:
    """Remove those calls that nothing reads, and then what only they have read."""
    open_, gone = list(nodes), set()
    while open_:
        node = open_.pop()
        if node.users or node.op not in ("call_function", "call_method") or node in gone:
            continue
        gone.add(node)
        open_ += node.all_input_nodes
        node.graph.erase_node(node)


def check_ops(nodes: Iterable[onnx.NodeProto], opsets: Mapping[str, int]) -> None:
    """Look every node up in the table before any work is done.

    Raises:
        UnsupportedError: listing all operators that are missing, with the names of their nodes.
    """
    missing: dict[str, list[str]] = {}
    for node in nodes:
        if node.op_type in STRUCTURE and node.domain in ("", "ai.onnx"):
            continue
        opset = opsets.get(node.domain, opsets.get("", 1) if node.domain == "ai.onnx" else 0)
        if registry.find(node.domain, node.op_type, opset) is None:
            kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            missing.setdefault(f"{kind} (opset {opset})", []).append(
                repr(node.name or next(iter(node.output), ""))
            )
    if missing:
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in missing.items())
        raise UnsupportedError(
            f"operators that cannot be imported: {listed}",
            "register a translation of your own with bnpass.importer.register_op",
        )


def _title(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or next(iter(node.output), '')!r}"


def _constant(node: onnx.NodeProto, release: bool) -> Const:
    attribute = node.attribute[0]
    name = node.output[0]
    if attribute.name == "value":
        return Const(name, attribute.t, release=release)
    value = value_of(attribute)
    if attribute.name in ("value_float", "value_floats"):
        return Const(name, tensor=torch.tensor(value, dtype=torch.float32))
    if attribute.name in ("value_int", "value_ints"):
        return Const(name, tensor=torch.tensor(value, dtype=torch.int64))
    raise NotExactError(f"a Constant given as {attribute.name}")
