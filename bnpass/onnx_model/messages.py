"""Small edits of single protobuf messages: order, names, attributes, numbers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import onnx

from bnpass.onnx_model.attributes import set_attributes
from bnpass.onnx_model.scopes import bodies
from bnpass.onnx_model.storage import external

_Message = TypeVar("_Message", onnx.ModelProto, onnx.NodeProto)


def copied(message: _Message) -> _Message:
    """A copy to be edited."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put nodes in place of a graph's, whose own may be among them."""
    copies = [copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def add_initializer(model: onnx.ModelProto, tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Put a copy of a tensor among the main graph's initializers; returns that one."""
    made: onnx.TensorProto = model.graph.initializer.add()
    made.CopyFrom(tensor)
    list_initializer(model, made)
    return made


def list_initializer(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    """List an initializer of the main graph among the inputs, where the format demands it.

    It does up to version 3.
    """
    if model.ir_version < 4:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)


def reorder(messages: Any, order: list[int]) -> None:
    """Put the messages of a repeated field in an order, given by their places; others go.

    Nothing is copied: sorting moves pointers, where ``extend`` would copy every message.
    """
    keys = [len(messages)] * len(messages)
    for place, old in enumerate(order):
        keys[old] = place
    messages.sort(key=partial(next, iter(keys)))  # next(keys, message): the message is not needed
    del messages[len(order) :]


def rename_reads(node: onnx.NodeProto, final: dict[str, str]) -> None:
    """Let a node, and the bodies inside it, read values by the names that they have now."""
    for index, name in enumerate(node.input[:]):
        if name in final:
            node.input[index] = final[name]
    for body in bodies(node):
        for inner in body.node:
            rename_reads(inner, final)
        for output in body.output:
            if output.name in final and not any(output.name in n.output for n in body.node):
                identity = body.node.add(op_type="Identity", output=[output.name])
                identity.input.append(final[output.name])


def become(node: onnx.NodeProto, kind: str, inputs: list[str], outputs: list[str]) -> None:
    """Make one of ONNX's own operators of a node; its name stays, its attributes go."""
    node.op_type, node.domain = kind, ""
    del node.attribute[:]
    node.input[:] = inputs
    node.output[:] = outputs


# Inputs that were attributes in older opsets.
_ATTRIBUTES = {("Pad", 2): "value", ("Dropout", 1): "ratio"}


def set_attribute(node: onnx.NodeProto, index: int, value: float) -> None:
    """An input that the node's opset holds as an attribute."""
    name = _ATTRIBUTES[node.op_type, index]
    set_attributes(node, **{name: value})


@lru_cache(maxsize=64)
def elem_type(dtype: np.dtype) -> int:
    """ONNX's number of an element type."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


@lru_cache(maxsize=64)
def np_dtype(name: str) -> np.dtype:
    """numpy's type of that name, bfloat16 among them."""
    if name == "bfloat16":
        return onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    return np.dtype(name)


def overwrite(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    """Put an array into a tensor; its name and doc string stay."""
    if not tensor.raw_data:
        for data in ("float_data", "int32_data", "double_data"):
            tensor.ClearField(data)
        if external.is_external(tensor):
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    if tuple(tensor.dims[:]) != array.shape:
        tensor.dims[:] = array.shape
    tensor.data_type = elem_type(array.dtype)
    tensor.raw_data = array.tobytes()
