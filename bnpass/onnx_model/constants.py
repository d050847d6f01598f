"""Constants of a graph: initializers, Constant nodes, and whatever is computed from them alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import numpy_helper

from bnpass.ir.graph import Constant
from bnpass.ir.operators import kinds
from bnpass.onnx_model.attributes import attribute
from bnpass.onnx_model.evaluation import Evaluations, evaluated, tried
from bnpass.onnx_model.scopes import has_bodies
from bnpass.onnx_model.storage import external

# Not evaluated: they draw numbers, or hold weights in a quantised form that has to stay.
_KEPT = kinds(lambda row: row.random) | {
    "Dropout", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
}  # fmt: skip


@lru_cache(maxsize=64)
def dtype_name(elem_type: int) -> str | None:
    """numpy's name of an ONNX element type; None where numpy has none."""
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)).name)
    except (KeyError, ValueError, TypeError):
        return None


# Types whose raw data is numpy's own bytes: read without onnx's helper, which is far slower.
_PLAIN: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    7: np.dtype("<i8"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
}


class Places(Protocol):
    """Knows where external data lies: an :class:`~bnpass.onnx_model.model.OnnxModel`."""

    def place(self, tensor: onnx.TensorProto) -> external.Place:
        """Where a tensor's numbers lie."""


class TensorSource(Places, Protocol):
    """Also counts what computed constants cost."""

    evaluated: Evaluations


def held(tensor: onnx.TensorProto) -> np.ndarray:
    """The data that a tensor holds itself, without a copy where it lies ready."""
    plain = _PLAIN.get(tensor.data_type) if tensor.raw_data else None
    if plain is None:
        return numpy_helper.to_array(tensor)
    return np.frombuffer(tensor.raw_data, plain).reshape(tensor.dims)


def load_tensor(tensor: onnx.TensorProto, source: Places) -> np.ndarray:
    """A tensor's data."""
    if not external.is_external(tensor):
        return numpy_helper.to_array(tensor)
    where = source.place(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return external.read(where).view(dtype).reshape(list(tensor.dims))


class TensorConstant(Constant):
    """The constant that a TensorProto holds; nothing is read before it is asked for."""

    __slots__ = ("_source", "_tensor")

    def __init__(self, name: str, tensor: onnx.TensorProto, source: Places) -> None:
        self.name = name
        self._tensor, self._source = tensor, source
        self._shape = self._dtype = self._small = None

    def load(self) -> np.ndarray:
        """The data, read afresh."""
        raw = self._tensor.raw_data
        plain = _PLAIN.get(self._tensor.data_type) if raw else None
        if plain is not None:
            return np.frombuffer(raw, plain).reshape(self.shape)
        return load_tensor(self._tensor, self._source)

    def pieces(self, count: int) -> Iterator[np.ndarray]:
        """The data flat, ``count`` entries at a time; a piece lives until the next one."""
        if not external.is_external(self._tensor):
            yield from super().pieces(count)
            return
        where = self._source.place(self._tensor)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self._tensor.data_type)
        buffer = np.empty(min(count * dtype.itemsize, where.length), np.uint8)
        with external.opened(where.path) as file:
            file.seek(where.offset)
            left = where.length
            while left > 0:
                got = external.read_into(file, buffer[: min(left, buffer.size)])
                yield got.view(dtype)
                left -= got.size

    @property
    def raw(self) -> bytes | None:
        """The data as bytes, little-endian, where it lies ready like that; or None."""
        tensor = self._tensor
        return (tensor.raw_data or None) if tensor.data_type in _PLAIN else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The static shape."""
        if self._shape is None:
            self._shape = tuple(self._tensor.dims[:])
        return self._shape

    @property
    def dtype(self) -> str:
        """numpy's name of the element type."""
        if self._dtype is None:
            self._dtype = dtype_name(self._tensor.data_type) or "undefined"
        return self._dtype


def array_constant(name: str, array: np.ndarray) -> Constant:
    """A constant that the frontend made up (an attribute that became an input)."""
    return Constant(name, lambda: array, array.shape, array.dtype.name)


def graph_constants(
    initializers: dict[str, onnx.TensorProto], overridable: set[str], source: Places
) -> dict[str, Constant]:
    """Initializers that nobody can override."""
    return {
        name: TensorConstant(name, tensor, source)
        for name, tensor in initializers.items()
        if name not in overridable
    }


def node_constants(
    node: onnx.NodeProto,
    inputs: list[str],
    constants: dict[str, Constant],
    opset: int,
    source: TensorSource,
) -> list[Constant]:
    """The outputs of a node that are constants because all that it reads is."""
    for name in inputs:
        if name and name not in constants:
            return []
    if node.domain not in ("", "ai.onnx") or node.op_type in _KEPT:
        return []
    if node.op_type == "Constant":
        value = attribute(node, "value")
        if value is not None:
            return [TensorConstant(node.output[0], value, source)]
    if has_bodies(node) or (node.op_type == "BatchNormalization" and _trains(node)):
        return []
    if node.op_type in ("Shape", "Size"):
        return [array_constant(node.output[0], _size_of(node, constants[node.input[0]]))]
    if node.op_type not in _TRUSTED:
        return tried(node, constants.get, opset, source.evaluated)
    return evaluated(node, constants.get, opset, source.evaluated)


def _trains(node: onnx.NodeProto) -> bool:
    """Whether a BatchNormalization makes new statistics, which nothing may settle."""
    return bool(attribute(node, "training_mode", 0)) or sum(map(bool, node.output)) > 1


def _size_of(node: onnx.NodeProto, constant: Constant) -> np.ndarray:
    """Shape and Size of a constant, whose data is not read for that."""
    if node.op_type == "Size":
        return np.array(math.prod(constant.shape), np.int64)
    part = constant.shape[attribute(node, "start", 0) : attribute(node, "end")]
    return np.array(part, np.int64)


def like(name: str, constant: Constant, dtype: str) -> Constant:
    """CastLike of a constant, in a type that is known."""
    kind = _dtype_of(dtype)
    return Constant(name, lambda: np.asarray(constant.load()).astype(kind), constant.shape, dtype)


def _dtype_of(name: str) -> np.dtype[Any]:
    """The numpy type of a name that :func:`dtype_name` gives (bfloat16 is ml_dtypes')."""
    kinds = onnx.TensorProto.DataType.values()
    found = next((k for k in kinds if dtype_name(k) == name), None)
    return np.dtype(name if found is None else onnx.helper.tensor_dtype_to_np_dtype(found))


# Computed when asked for: onnx's evaluator is known to compute these.
_TRUSTED = frozenset(
    {
        "Abs", "Add", "BatchNormalization", "Cast", "Concat", "Constant", "ConstantOfShape", "Div",
        "Equal", "Exp", "Expand", "Flatten", "Floor", "Gather", "Greater", "Identity", "Less",
        "Log", "MatMul",
        "Max", "Min", "Mul", "Neg", "Not", "Pow", "Range", "Reciprocal", "ReduceMean",
        "ReduceProd", "ReduceSum", "Reshape", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile",
        "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
