"""``write_back``: the parameters of an imported module, put into the ONNX model by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from bnpass.errors import InputError
from bnpass.files import load_model
from bnpass.importer.model import META
from bnpass.importer.store import Origin
from bnpass.importer.values import to_array


def write_back(
    gm: torch.fx.GraphModule, model: str | os.PathLike[str] | onnx.ModelProto
) -> onnx.ModelProto:
    """Put the trained parameters and BN statistics of ``gm`` into the model it came from.

    Tensors whose values have not changed keep their bytes, and nothing but tensors is touched, with
    two exceptions where a file says that different weights are one: an Identity of a weight, once
    trained apart, becomes an initializer of its own name, and so does a statistic that is shared.

    Args:
        gm: a module from :func:`~bnpass.importer.to_torch`, or a deepcopy of it.
        model: the ONNX model that it was imported from (path or ModelProto; not changed).

    Returns:
        A copy of the model with the new values, in the types that the file has.

    Raises:
        InputError: ``gm`` was not imported from this model (a name or a shape is missing).
    """
    origins = gm.meta.get(META, {}).get("origins")
    if origins is None:
        raise InputError("this module was not made by to_torch", "import the ONNX model first")
    result = onnx.ModelProto()
    result.CopyFrom(load_model(model))
    writer = _Writer(result)
    tensors = dict(gm.named_parameters(remove_duplicate=False)) | dict(gm.named_buffers())
    for path, origin in _parameters_first(origins):
        if path in tensors:
            writer.write(origin, to_array(tensors[path]))
    writer.finish()
    return result


def _parameters_first(origins: Mapping[str, Origin]) -> list[tuple[str, Origin]]:
    return sorted(origins.items(), key=lambda item: bool(item[1].output))


class _Writer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._places: dict[str, onnx.TensorProto] = {}
        self._identities: dict[str, tuple[onnx.GraphProto, onnx.NodeProto]] = {}
        self._readers: dict[str, int] = {}
        self._nodes: dict[str, onnx.NodeProto] = {}
        self._names = {i.name for i in model.graph.input}
        for graph in _graphs(model.graph):
            self._index(graph)
        self._drop: list[tuple[onnx.GraphProto, onnx.NodeProto]] = []

    def _index(self, graph: onnx.GraphProto) -> None:
        self._places.update({i.name: i for i in graph.initializer})
        for node in graph.node:
            self._names.update(node.output)
            for name in node.input:
                self._readers[name] = self._readers.get(name, 0) + 1
            if node.op_type == "Constant" and not node.domain:
                self._places[node.output[0]] = _value_of(node)
            elif node.op_type == "Identity" and not node.domain:
                self._identities[node.output[0]] = graph, node
            if node.output:
                self._nodes[node.output[0]] = node
        for output in graph.output:
            self._readers[output.name] = self._readers.get(output.name, 0) + 1

    def write(self, origin: Origin, value: np.ndarray) -> None:
        """Store one tensor where its origin says, if it differs from what is there."""
        holder = self._places.get(origin.name)
        if holder is None and origin.name in self._identities:
            self._replace_identity(origin, value)
            return
        if holder is None:
            raise InputError(
                f"the model has no tensor {origin.name!r}", "give the model that gm came from"
            )
        if tuple(holder.dims) != value.shape:
            raise InputError(
                f"tensor {origin.name!r} has shape {tuple(holder.dims)}, not {value.shape}",
                "give the model that gm came from",
            )
        if _same(holder, value):
            return
        if origin.output and self._readers.get(origin.name, 0) > 1:
            self._own_statistic(origin, value)
        else:
            _fill(holder, value)

    def _replace_identity(self, origin: Origin, value: np.ndarray) -> None:
        graph, node = self._identities[origin.name]
        source = self._places.get(self._source(origin.name))
        if source is not None and _same(source, value):
            # unchanged so far; but the weight that it copies may be written after this one
            self._late = [*getattr(self, "_late", []), (origin, value)]
            return
        self._split(graph, node, value)

    def _source(self, name: str) -> str:
        while name in self._identities:
            name = self._identities[name][1].input[0]
        return name

    def _split(self, graph: onnx.GraphProto, node: onnx.NodeProto, value: np.ndarray) -> None:
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        self._drop.append((graph, node))

    def _own_statistic(self, origin: Origin, value: np.ndarray) -> None:
        node = self._nodes[origin.output]
        name = f"{origin.output}.{('scale', 'bias', 'mean', 'var')[origin.index - 1]}"
        while name in self._names or name in self._places:
            name += "_"
        tensor = numpy_helper.from_array(value, name)
        self._graph.initializer.append(tensor)
        self._places[name] = tensor
        self._readers[origin.name] -= 1
        node.input[origin.index] = name

    def finish(self) -> None:
        """Split the Identities whose source has changed, and drop the nodes that are replaced."""
        for origin, value in getattr(self, "_late", []):
            graph, node = self._identities[origin.name]
            source = self._places[self._source(origin.name)]
            if not _same(source, value):
                self._split(graph, node, value)
        for graph, node in self._drop:
            graph.node.remove(node)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _value_of(node: onnx.NodeProto) -> onnx.TensorProto:
    """The tensor of a Constant node (which may hold a list of floats instead)."""
    attribute = node.attribute[0]
    if attribute.name in ("value_float", "value_floats"):
        value = np.array(onnx.helper.get_attribute_value(attribute), dtype=np.float32)
        return _Listed(attribute, value)  # type: ignore[return-value]
    return attribute.t


class _Listed:
    """A Constant's list of floats with the face of a TensorProto."""

    def __init__(self, attribute: onnx.AttributeProto, value: np.ndarray) -> None:
        self.attribute, self.value, self.dims = attribute, value, value.shape


def _same(holder: onnx.TensorProto, value: np.ndarray) -> bool:
    old = holder.value if isinstance(holder, _Listed) else numpy_helper.to_array(holder)
    kept: bool = old.dtype == value.dtype and old.tobytes() == value.tobytes()
    return kept


def _fill(holder: onnx.TensorProto, value: np.ndarray) -> None:
    if isinstance(holder, _Listed):
        del holder.attribute.floats[:]
        holder.attribute.floats.extend(value.tolist())
        return
    new = numpy_helper.from_array(value, holder.name)
    doc = holder.doc_string
    if new.data_type != holder.data_type:
        raise InputError(f"tensor {holder.name!r} has changed its type", "train in the file's type")
    holder.CopyFrom(new)
    if doc:
        holder.doc_string = doc


def names_of(origins: Iterable[Origin]) -> set[str]:
    """The ONNX names of a module's tensors."""
    return {origin.name for origin in origins}
