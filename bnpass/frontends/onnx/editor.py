"""Surgical edits of one GraphProto: constants, removed and added nodes, names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx

from bnpass.frontends.onnx.read import Reading, Scope
from bnpass.ir.affine import all_finite
from bnpass.ir.graph import Op
from bnpass.ir.scaled import Scaled
from bnpass.onnx_model.messages import (
    np_dtype,
    overwrite,
    rename_reads,
    reorder,
    set_attribute,
)
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.storage.patching import APPEND_FROM


class OverflowedError(Exception):
    """New weights that the weight's own type cannot hold; ``op`` names the operator."""

    def __init__(self, op: str) -> None:
        super().__init__(op)
        self.op = op


class Editor:
    """Collects the edits of one scope; :meth:`finish` rebuilds its list of nodes.

    Attributes:
        grown: bytes of weights that had to be stored a second time.
    """

    def __init__(self, reading: Reading, scope: Scope) -> None:
        self.reading, self.scope = reading, scope
        self.graph = scope.proto
        self.grown = 0
        self._names: set[str] | None = None  # of the whole model, once a new one is needed
        self._nodes = list(self.graph.node)  # kept, so that their ids stay theirs
        self._initializers = scope.initializers
        self._behind: dict[int, list[onnx.NodeProto]] = {}
        self._before: dict[int, list[onnx.NodeProto]] = {}
        self._gone: set[int] = set()
        self._alias: dict[str, str] = {}
        self._rename: dict[str, str] = {}
        self._overwritten: set[str] = set()

    # --- names

    def unique(self, base: str) -> str:
        """A name that nothing in the model has yet, ``base`` if it is free."""
        if self._names is None:
            self._names = _all_names(self.reading)
        name, n = base, 1
        while name in self._names:
            n += 1
            name = f"{base}_{n}"
        self._names.add(name)
        return name

    # --- constants

    def set_constant(self, op: Op, index: int, array: np.ndarray) -> None:
        """Give an operator a new float constant, rounded once to the type of the old one.

        A tensor that nothing else reads is overwritten; any other stays for its readers.

        Raises:
            OverflowedError: the rounded values are not finite.
        """
        self.set_constants([op], index, array[np.newaxis])

    def set_constants(self, ops: Sequence[Op], index: int, arrays: np.ndarray) -> None:
        """:meth:`set_constant` of operators whose constants have one type: arrays (n, *shape)."""
        name = ops[0].input(index)
        old = self.scope.graph.constant(name)
        rounded = self._rounded(ops, arrays, old.dtype if old is not None else self._dtype(ops[0]))
        for op, array in zip(ops, rounded, strict=True):
            self._store(op, index, array)

    def set_scaled(self, op: Op, index: int, scaled: Scaled) -> None:
        """:meth:`set_constant` of a large weight that is there, times factors."""
        name, dtype = op.input(index), np_dtype(scaled.constant.dtype)
        tensor, store = self._own(name), self.reading.store
        try:
            if tensor is not None and store is not None and external.is_external(tensor):
                store.patch(tensor, scaled.pieces(dtype))
            else:
                self._store(op, index, scaled.rounded(dtype))
        except OverflowError:
            raise OverflowedError(op.name) from None

    def _own(self, name: str) -> onnx.TensorProto | None:
        """The tensor of that name if a single input reads it, so that it may be overwritten."""
        if self.scope.readers[name] != 1:
            return None
        self._overwritten.add(name)
        return self._initializers.get(name)

    def _store(self, op: Op, index: int, array: np.ndarray) -> None:
        name = op.input(index)
        tensor = self._own(name)
        if tensor is not None:
            self._overwrite(tensor, array)
            return
        node = self.scope.nodes[op.name]
        if name not in node.input and self.scope.graph.constant(name) is not None:
            set_attribute(node, index, float(array.reshape(-1)[0]))
            return
        suffix = ("weight", "weight", "bias")[min(index, 2)]
        if self.scope.owner(name).readers[name] > 1:  # others keep the old one
            self.grown += array.nbytes
        base = f"{name}_folded" if name else f"{op.name}.{suffix}"
        self.set_input(node, index, self.add_initializer(base, array))

    def _overwrite(self, tensor: onnx.TensorProto, array: np.ndarray) -> None:
        if tuple(tensor.dims[:]) != array.shape:
            self._retype(tensor.name, array)
        elif self.reading.store is not None and external.is_external(tensor):
            self.reading.store.patch(tensor, [array])
            return
        overwrite(tensor, array)

    def _rounded(self, ops: Sequence[Op], arrays: np.ndarray, dtype: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            rounded = arrays.astype(np_dtype(dtype), order="C")
        if not all_finite(rounded):
            bad = next(op for op, array in zip(ops, rounded, strict=True) if not all_finite(array))
            raise OverflowedError(bad.name)
        return rounded

    def _dtype(self, op: Op) -> str:
        for name in (*op.inputs[1:2], *op.inputs[:1], *op.outputs[:1]):
            dtype = self.scope.graph.dtype(name)
            if dtype is not None and not dtype.startswith(("int", "uint", "bool")):
                return dtype
        return "float32"

    def _retype(self, name: str, array: np.ndarray) -> None:
        """Initializers that are listed as inputs (IR 3) or in value_info: their shape changes."""
        elem = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        for info in (*self.graph.input, *self.graph.value_info):
            if info.name == name:
                info.CopyFrom(onnx.helper.make_tensor_value_info(name, elem, array.shape))

    def add_rounded(self, op: Op, base: str, array: np.ndarray, dtype: str) -> str:
        """:meth:`add_initializer` on behalf of an operator, rounded once to a type.

        Raises:
            OverflowedError: the rounded values are not finite.
        """
        return self.add_initializer(base, self._rounded([op], array[np.newaxis], dtype)[0])

    def add_initializer(self, base: str, array: np.ndarray) -> str:
        """Store a new constant; returns its name."""
        name = self.unique(base)
        tensor = self.graph.initializer.add(name=name)
        if self.reading.store is not None and array.nbytes >= APPEND_FROM:
            self.reading.store.append(tensor, array)
        else:
            overwrite(tensor, array)
        self._initializers[name] = tensor
        if self.reading.model.ir_version < 4 and self.scope.outer is None:
            self.graph.input.append(
                onnx.helper.make_tensor_value_info(name, tensor.data_type, array.shape)
            )
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

    def insert_behind(self, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        """Put new nodes right behind another one."""
        self._behind.setdefault(id(node), []).extend(new)
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
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
            del node.input[:]
            node.input.append(op.inputs[data])
            return
        self._gone.add(id(node))

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
        if self._alias or self._rename:
            self._forget_infos()
        if self.reading.model.ir_version >= 4:
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
        stale = [i for i in self.graph.value_info if i.name in gone and i.name not in written]
        if stale:
            names = {i.name for i in stale}
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
            constant = self.scope.graph.constant(name) is not None
            if maker is None or not constant or id(maker) in nodes:
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


def _all_names(reading: Reading) -> set[str]:
    names: set[str] = set()
    for scope in reading.scopes:
        graph = scope.proto
        names.update(t.name for t in graph.initializer)
        names.update(t.values.name for t in graph.sparse_initializer)
        names.update(i.name for i in (*graph.input, *graph.output, *graph.value_info))
        for node in graph.node:
            names.update(node.output)
            names.add(node.name)
    return names
