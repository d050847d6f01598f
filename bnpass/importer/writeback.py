"""``write_back``: the parameters of an imported module, put into the ONNX model by name."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from bnpass.errors import InputError
from bnpass.frontends.fx.copying import unwrapped
from bnpass.importer.gates import arranged, inverse
from bnpass.importer.inlining import function_constants
from bnpass.importer.model import notes_of
from bnpass.importer.store import Origin
from bnpass.importer.values import dense, to_array
from bnpass.onnx_model.attributes import value_of
from bnpass.onnx_model.messages import add_initializer
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.names import Names
from bnpass.onnx_model.scopes import graphs, nodes_within

_ITS_MODEL = "give the model that the module came from"


def write_back(
    gm: torch.nn.Module, model: str | os.PathLike[str] | onnx.ModelProto
) -> onnx.ModelProto:
    """Put the trained parameters and BN statistics of ``gm`` into the model it came from.

    Tensors whose values have not changed keep their bytes, and nothing but tensors is touched, with
    two exceptions where a file says that different weights are one: an Identity of a weight, once
    trained apart, becomes an initializer of its own name, and so does a statistic that is shared.

    Args:
        gm: a module from :func:`~bnpass.importer.to_torch`, a copy of it, or a wrapper around one.
        model: the ONNX model that it was imported from (path or ModelProto; not changed).

    Returns:
        A copy of the model with the new values, in the types that the file has.

    Raises:
        InputError: ``gm`` was not imported from this model (a name or a shape is missing).
    """
    gm = unwrapped(gm)
    origins: dict[str, Origin] | None = notes_of(gm).get("origins")
    if origins is None:
        raise InputError("this module was not made by to_torch", "import the ONNX model first")
    result = OnnxModel.to_edit(model).proto
    tensors = dict(gm.named_parameters(remove_duplicate=False)) | dict(gm.named_buffers())
    values = {o: in_file(tensors[path], o) for path, o in origins.items() if path in tensors}
    writer = _Writer(result)
    writer.write_constants({o: v for o, v in values.items() if not o.uses})
    writer.write_statistics({o: v for o, v in values.items() if o.uses})
    writer.keep_copies({o.name for o in values if not o.uses})
    writer.drop_replaced()
    return result


def in_file(tensor: torch.Tensor, origin: Origin) -> np.ndarray:
    """A tensor of the module as its file has it."""
    array = to_array(tensor)
    if origin.gates:
        array = arranged(array, inverse(origin.gates))
    return array


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal bit for bit."""
    return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())


@dataclass
class _Holder:
    """Where a tensor's bytes are: a TensorProto, or the list of floats of a Constant node.

    A sparse initializer of the graph ``sparse_in`` becomes a dense one once it is filled.
    """

    tensor: onnx.TensorProto | None = None
    attribute: onnx.AttributeProto | None = None
    sparse_in: onnx.GraphProto | None = None

    @property
    def value(self) -> np.ndarray:
        if self.tensor is not None:
            array: np.ndarray = numpy_helper.to_array(self.tensor)
            return array
        assert self.attribute is not None
        return np.array(value_of(self.attribute), dtype=np.float32)

    def holds(self, value: np.ndarray) -> bool:
        """Whether the bytes are these already."""
        return same_bytes(self.value, value)

    def check(self, name: str, value: np.ndarray) -> None:
        """Refuse a value of another shape or type.

        Raises:
            InputError: naming the tensor.
        """
        shape, kind = self.value.shape, self.value.dtype
        if shape != value.shape or kind != value.dtype:
            raise InputError(
                f"tensor {name!r} is {kind}{list(shape)} in the model, "
                f"{value.dtype}{list(value.shape)} in the module",
                _ITS_MODEL,
            )

    def fill(self, value: np.ndarray) -> None:
        """Replace the bytes; name and doc string stay."""
        if self.tensor is None:
            assert self.attribute is not None
            _fill_attribute(self.attribute, value)
            return
        new = numpy_helper.from_array(value, self.tensor.name)
        new.doc_string = self.tensor.doc_string
        self.tensor.CopyFrom(new)
        if self.sparse_in is not None:
            self.tensor = _make_dense(self.sparse_in, self.tensor)
            self.sparse_in = None


def _holder(node: onnx.NodeProto) -> _Holder:
    """Of a Constant node."""
    attribute = node.attribute[0]
    return _Holder(attribute.t) if attribute.name == "value" else _Holder(attribute=attribute)


def _only_statistics(function: onnx.FunctionProto, name: str) -> bool:
    """Whether BatchNormalizations alone read a value of a function, as mean or variance."""
    uses = (
        (n.op_type, i)
        for n in nodes_within(function.node)
        for i, x in enumerate(n.input)
        if x == name
    )
    return name not in function.output and all(
        kind == "BatchNormalization" and index in (3, 4) for kind, index in uses
    )


def _make_dense(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> onnx.TensorProto:
    names = [sparse.values.name for sparse in graph.sparse_initializer]
    del graph.sparse_initializer[names.index(tensor.name)]
    made: onnx.TensorProto = graph.initializer.add()
    made.CopyFrom(tensor)
    return made


def _fill_attribute(attribute: onnx.AttributeProto, value: np.ndarray) -> None:
    if attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = float(value)
        return
    del attribute.floats[:]
    attribute.floats.extend(value.tolist())


class _Writer:
    """Finds every tensor of a model by name, once, and replaces values."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._holders: dict[str, _Holder] = {}
        self._identities: dict[str, onnx.NodeProto] = {}
        self._nodes: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, int] = {}
        self._names = Names(model)
        self._replaced: set[str] = set()
        self._before: dict[str, np.ndarray] = {}
        self._in_functions: dict[str, bool] = {}  # whether only statistics are read of it
        for graph in graphs(model.graph):
            self._index(graph)
        for name, function, node in function_constants(model):
            self._holders[name] = _holder(node)
            self._in_functions[name] = _only_statistics(function, node.output[0])

    def _index(self, graph: onnx.GraphProto) -> None:
        self._holders.update({i.name: _Holder(i) for i in graph.initializer})
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            self._holders[name] = _Holder(dense(sparse), sparse_in=graph)
        for node in graph.node:
            for name in node.input:
                self._readers[name] = self._readers.get(name, 0) + 1
            if node.output:
                self._nodes[node.output[0]] = node
            if node.op_type == "Constant" and not node.domain:
                self._holders[node.output[0]] = _holder(node)
            elif node.op_type == "Identity" and not node.domain:
                self._identities[node.output[0]] = node
        for output in graph.output:
            self._readers[output.name] = self._readers.get(output.name, 0) + 1

    def write_constants(self, values: dict[Origin, np.ndarray]) -> None:
        """Initializers and Constants first: Identities are compared with what they hold then."""
        copies = {}
        for origin, value in values.items():
            holder = self._holders.get(origin.name)
            if holder is None and origin.name in self._identities:
                copies[origin.name] = value
                continue
            holder = self._checked(origin.name, value)
            if not holder.holds(value):
                self._before[origin.name] = holder.value
                holder.fill(value)
        for name, value in copies.items():
            if not self._checked(self._source(name), value).holds(value):
                self._replaced.add(name)
                self._add(value, name)

    def write_statistics(self, values: dict[Origin, np.ndarray]) -> None:
        """Statistics in place, or under a name of their own where others read the same tensor."""
        for origin, value in values.items():
            if origin.computed is not None:
                if not same_bytes(origin.computed, value):
                    self._split_off(origin, value)
                continue
            source = self._source(origin.name)
            holder = self._checked(source, value)
            if holder.holds(value):
                continue
            if source == origin.name and self._only_used_by(origin):
                holder.fill(value)
                continue
            self._split_off(origin, value)
            self._readers[source] -= len(origin.uses)

    def _only_used_by(self, origin: Origin) -> bool:
        """Whether all that reads a tensor sees it as this statistic.

        Raises:
            InputError: others do, and it lies in a function, where it cannot be split off.
        """
        alone = self._in_functions.get(origin.name)
        if alone is None:
            return self._readers.get(origin.name, 0) == len(origin.uses)
        if not alone:
            raise InputError(
                f"the statistic {origin.name!r} of a function is read by other operators, too",
                "inline the functions first: onnx.inliner.inline_local_functions(model)",
            )
        return True

    def _split_off(self, origin: Origin, value: np.ndarray) -> None:
        """Store a statistic under a name of its own, for the BatchNormalizations that use it."""
        output, index = origin.uses[0]
        name = self._names.fresh(f"{output}.{('mean', 'var')[index - 3]}")
        self._add(value, name)
        for output, index in origin.uses:
            if output not in self._nodes:
                raise InputError(f"the model has no node that makes {output!r}", _ITS_MODEL)
            self._nodes[output].input[index] = name

    def keep_copies(self, written: set[str]) -> None:
        """An Identity of a weight that the module holds as a constant keeps the old value.

        Args:
            written: the names that have a value of their own in the module.
        """
        for name in self._identities:
            source = self._identities[name].input[0]
            while source in self._identities:
                source = self._identities[source].input[0]
            old = self._before.get(source)
            if old is None or name in written or not self._readers.get(name):
                continue
            if not self._holders[self._source(name)].holds(old):
                self._replaced.add(name)
                self._add(old, name)

    def _checked(self, name: str, value: np.ndarray) -> _Holder:
        holder = self._holders.get(name)
        if holder is None:
            raise InputError(f"the model has no tensor {name!r}", _ITS_MODEL)
        holder.check(name, value)
        return holder

    def _source(self, name: str) -> str:
        while name in self._identities and name not in self._replaced:
            name = self._identities[name].input[0]
        return name

    def _add(self, value: np.ndarray, name: str) -> None:
        made = add_initializer(self._model, numpy_helper.from_array(value, name))
        self._holders[name] = _Holder(made)

    def drop_replaced(self) -> None:
        """Remove the Identity nodes whose output is an initializer now."""
        for graph in graphs(self._model.graph):
            for position in reversed(range(len(graph.node))):
                node = graph.node[position]
                if node.op_type == "Identity" and node.output[0] in self._replaced:
                    del graph.node[position]
