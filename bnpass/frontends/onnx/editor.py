"""Surgical edits of one GraphProto: constants, removed and added nodes, names."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

from bnpass.frontends.onnx.numbers import Numbers
from bnpass.frontends.onnx.read import Scope
from bnpass.ir.graph import Op
from bnpass.onnx_model.messages import (
    become,
    list_initializer,
    overwrite,
    rename_reads,
    reorder,
    set_attribute,
)
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.storage.patching import APPEND_FROM, Staged


class Editor:
    """Collects the edits of one scope; :meth:`finish` rebuilds its list of nodes."""

    def __init__(self, model: OnnxModel, scope: Scope) -> None:
        self.model, self.scope = model, scope
        self.graph = scope.proto
        self._nodes = list(self.graph.node)  # kept, so that their ids stay theirs
        self._initializers = scope.initializers
        self._behind: dict[int, list[onnx.NodeProto]] = {}
        self._before: dict[int, list[onnx.NodeProto]] = {}
        self._gone: set[int] = set()
        self._alias: dict[str, str] = {}
        self._rename: dict[str, str] = {}
        self._overwritten: set[str] = set()
        self._deleted: set[str] = set()
        self._copies: dict[str, str] = {}  # names of new constants by their keys

    # --- constants

    def set_constant(self, op: Op, index: int, numbers: Numbers, copy: str = "") -> None:
        """Give an operator a new constant, which has the type of the old one.

        A tensor that nothing else reads is overwritten; any other stays for its readers.

        Args:
            op: the operator.
            index: of the input.
            numbers: the new constant.
            copy: of a constant that others read: a key; operators with one key share the new one.
        """
        if copy in self._copies:
            self.set_input(self.scope.nodes[op.name], index, self._copies[copy])
            return
        if self._grows(op, index, numbers):
            self.reshape(*op.outputs)
        tensor, store = self._own(op.input(index)), self.model.store
        if isinstance(numbers, Staged):
            assert tensor is not None and store is not None  # noqa: PT018
            store.commit(tensor, numbers)
        elif tensor is not None:
            self._overwrite(tensor, numbers)
        else:
            self._store(op, index, numbers)
            if copy:
                self._copies[copy] = self.scope.nodes[op.name].input[index]

    def _grows(self, op: Op, index: int, numbers: Numbers) -> bool:
        """Whether a number becomes one for each channel, where the result grows along with it."""
        old = self.scope.graph.constant(op.input(index))
        if isinstance(numbers, Staged) or old is None or op.kind not in ("Mul", "Add"):
            return False
        return numbers.size > 1 == math.prod(old.shape)

    def _own(self, name: str) -> onnx.TensorProto | None:
        """The tensor of that name if a single input reads it, so that it may be overwritten."""
        if self.scope.readers[name] != 1:
            return None
        self._overwritten.add(name)
        return self._initializers.get(name)

    def _store(self, op: Op, index: int, array: np.ndarray) -> None:
        name, node = op.input(index), self.scope.nodes[op.name]
        if name not in node.input and self.scope.graph.constant(name) is not None:
            set_attribute(node, index, float(array.reshape(-1)[0]))
            return
        suffix = ("weight", "weight", "bias")[min(index, 2)]
        base = f"{name}_folded" if name else f"{op.name}.{suffix}"
        self.set_input(node, index, self.add_initializer(base, array))

    def _overwrite(self, tensor: onnx.TensorProto, array: np.ndarray) -> None:
        if tuple(tensor.dims[:]) != array.shape:
            self._retype(tensor.name, array)
        elif self.model.store is not None and external.is_external(tensor):
            self.model.store.commit(tensor, self.model.store.stage(tensor, [array]))
            return
        overwrite(tensor, array)

    def _retype(self, name: str, array: np.ndarray) -> None:
        """Initializers that are listed as inputs (IR 3) or in value_info: their shape changes."""
        elem = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        for info in (*self.graph.input, *self.graph.value_info):
            if info.name == name:
                info.CopyFrom(onnx.helper.make_tensor_value_info(name, elem, array.shape))

    def add_initializer(self, base: str, array: np.ndarray) -> str:
        """Store a new constant; returns its name."""
        name = self.model.fresh(base)
        tensor = self.graph.initializer.add(name=name)
        if self.model.store is not None and array.nbytes >= APPEND_FROM:
            self.model.store.append(tensor, array)
        else:
            overwrite(tensor, array)
        self._initializers[name] = tensor
        if self.scope.outer is None:
            list_initializer(self.model.proto, tensor)
        return name

    def set_input(self, node: onnx.NodeProto, index: int, name: str) -> None:
        """Let a node read ``name`` as input ``index``, optional ones before it left out."""
        while len(node.input) <= index:
            node.input.append("")
        self.release(node.input[index])
        node.input[index] = name
        self.scope.owner(name).readers[name] += 1

    def replace_reads(self, node: onnx.NodeProto, old: str, new: str) -> None:
        """Let one node read ``new`` wherever it reads ``old``."""
        for index, name in enumerate(node.input):
            if name == old:
                self.set_input(node, index, new)

    def drop_input(self, node: onnx.NodeProto, index: int) -> None:
        """Leave an optional input out; trailing empty ones go."""
        self.release(node.input[index])
        node.input[index] = ""
        while node.input and not node.input[-1]:
            node.input.pop()

    def release(self, *names: str) -> None:
        """Note that one input less reads each of the values."""
        for name in names:
            if name:
                owner = self.scope.owner(name)
                owner.readers[name] -= 1
                owner.released.add(name)

    # --- nodes

    def settle(self, node: onnx.NodeProto) -> None:
        """Let a node of constants become a Constant node that holds what it computes."""
        name = node.output[0]
        constant = self.scope.graph.constant(name)
        assert constant is not None
        value = numpy_helper.from_array(np.ascontiguousarray(constant.load()), name)
        self.release(*node.input)
        become(node, "Constant", [], [name])
        node.attribute.append(onnx.helper.make_attribute("value", value))

    def insert_behind(self, node: onnx.NodeProto | None, *new: onnx.NodeProto) -> None:
        """Put new nodes right behind another one; None: in front of all."""
        self._behind.setdefault(0 if node is None else id(node), []).extend(new)
        self._count(new)

    def insert_before(self, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        """Put new nodes right in front of another one."""
        self._before.setdefault(id(node), []).extend(new)
        self._count(new)

    def _count(self, new: Iterable[onnx.NodeProto]) -> None:
        for one in new:
            for name in one.input:
                if name:
                    self.scope.owner(name).readers[name] += 1

    def remove(self, op: Op, data: int) -> None:
        """Take an operator out: what read its output reads its data input from now on.

        Call it in topological order. A graph's output keeps its name.
        """
        node = self.scope.nodes[op.name]
        source, result = self.resolve(op.inputs[data]), op.outputs[0]
        inputs = node.input[:]
        del inputs[data]
        self.release(*inputs)
        if not self.scope.graph.is_output(result):
            self._alias[result] = source
        elif self._may_rename(source):
            self._rename[source] = result
        else:
            become(node, "Identity", [op.inputs[data]], [result])
            return
        self._gone.add(id(node))

    def delete(self, op: Op) -> None:
        """Take an operator out whose value nothing reads any more."""
        node = self.scope.nodes[op.name]
        self.release(*node.input)
        self._gone.add(id(node))
        self._deleted.update(filter(None, node.output))

    def reshape(self, *values: str) -> None:
        """The shapes of values are others than before: what is written about them goes."""
        self._deleted.update(values)

    def _may_rename(self, value: str) -> bool:
        graph = self.scope.graph
        produced = graph.producer(value) is not None
        return produced and not graph.is_output(value) and value not in self._rename

    def resolve(self, name: str) -> str:
        """What a value is read as once the removed nodes are gone, before renaming."""
        return self._alias.get(name, name)

    def redirect(self, name: str, new: str) -> None:
        """Let everything that reads ``name`` read ``new`` instead."""
        self._alias[name] = new

    def finish(self) -> None:
        """Apply removals, insertions and names; drop what nothing reads any more."""
        gone = self._gone | self._sweep()
        if self._behind or self._before or gone:
            self._arrange(gone)
        if self._alias or self._rename or self._deleted:
            self._forget_infos()
        if self.model.proto.ir_version >= 4:
            self._freeze_inputs()

    def _freeze_inputs(self) -> None:
        """Defaults that a fold has used are constants: what callers gave would miss the fold."""
        used = (self._overwritten | self.scope.released) & self._initializers.keys()
        for place in reversed([i for i, v in enumerate(self.graph.input) if v.name in used]):
            del self.graph.input[place]

    def _arrange(self, gone: set[int]) -> None:
        """Keep the nodes that stay, new ones in their places, and let all read what is there."""
        new: list[onnx.NodeProto] = []
        order: list[int] = []  # places among the nodes that are there, then the new ones
        there = len(self._nodes)
        for one in self._behind.get(0, ()):
            order.append(there + len(new))
            new.append(one)
        for place, node in enumerate(self._nodes):
            key = id(node)
            for group, stays in ((self._before, key not in gone), (self._behind, False)):
                for one in group.get(key, ()) if group else ():
                    order.append(there + len(new))
                    new.append(one)
                if stays:
                    order.append(place)
        self._reroute(new)
        self.graph.node.extend(new)
        reorder(self.graph.node, order)

    def _reroute(self, new: list[onnx.NodeProto]) -> None:
        """Whatever reads a value that is gone, or has another name now, reads the right one."""
        if not (self._alias or self._rename):
            return
        final = {old: self._rename.get(now, now) for old, now in self._alias.items()}
        final.update(self._rename)
        graph, nodes = self.scope.graph, self.scope.nodes
        readers = {use.op.name for name in final for use in graph.uses(name)}
        behind = {id(n) for group in self._behind.values() for n in group}
        for node in (*map(nodes.__getitem__, readers), *(n for n in new if id(n) not in behind)):
            rename_reads(node, final)
        makers = [nodes[op.name] for op in map(graph.producer, self._rename) if op is not None]
        for node in (*makers, *new):
            for index, name in enumerate(node.output):
                if name in self._rename:
                    node.output[index] = self._rename[name]

    def _forget_infos(self) -> None:
        """value_info of values that are gone."""
        if not self.graph.value_info:
            return
        gone = {name for name in self._alias if self._alias[name] != name} | set(self._rename)
        written = {name for node in self.graph.node for name in node.output}
        gone = gone - written | self._deleted
        names = {i.name for i in self.graph.value_info if i.name in gone}
        if names:
            kept = [i for i in self.graph.value_info if i.name not in names]
            del self.graph.value_info[:]
            self.graph.value_info.extend(kept)

    def _sweep(self) -> set[int]:
        """Initializers and constant nodes that lost their last reader go; ids of such nodes.

        What a body has left of the graphs around it goes when they are finished, after it.
        """
        dead, nodes = self._unread()
        _drop_initializers(self.scope, dead)
        return nodes

    def _unread(self) -> tuple[set[str], set[int]]:
        """Names that nothing reads any more, and ids of the constant nodes that made them."""
        readers = self.scope.readers
        dead = {name for name in self.scope.released if not readers[name]}
        stack = [name for name in dead if name not in self._initializers]
        makers = {o: n for n in self._nodes for o in n.output} if stack else {}
        nodes: set[int] = set()
        while stack:
            name = stack.pop()
            maker = makers.get(name)
            if maker is None or id(maker) in nodes:
                continue
            constant = self.scope.graph.constant(name) is not None
            if not constant and maker.op_type not in ("DequantizeLinear", "QuantizeLinear"):
                continue
            if any(readers[output] for output in maker.output):
                continue
            nodes.add(id(maker))
            self.release(*maker.input)
            unread = [name for name in maker.input if name and not readers[name]]
            dead.update(unread)
            stack += unread
        return dead, nodes


def _drop_initializers(scope: Scope, dead: set[str]) -> None:
    gone = dead.intersection(scope.initializers)
    if not gone:
        return
    graph = scope.proto
    kept = [i for i, name in enumerate(scope.initializers) if name not in gone]
    reorder(graph.initializer, kept)
    for name in gone:
        del scope.initializers[name]
    for place in reversed([i for i, v in enumerate(graph.input) if v.name in gone]):
        del graph.input[place]
