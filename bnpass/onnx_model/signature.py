"""What a model takes and gives: names, element types, shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bnpass.errors import UnsupportedError

Dim = int | str | None


@dataclass(frozen=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: its name.
        kind: ONNX element type (``TensorProto.FLOAT`` ...).
        shape: sizes, symbols' names, or None for an unnamed unknown; None when the rank is unknown.
    """

    name: str
    kind: int
    shape: tuple[Dim, ...] | None


def inputs_of(model: onnx.ModelProto) -> list[Port]:
    """Return the inputs that a caller feeds: graph inputs that are no initializers."""
    constants = {t.name for t in model.graph.initializer}
    return [_port(v) for v in model.graph.input if v.name not in constants]


def outputs_of(model: onnx.ModelProto) -> list[Port]:
    """Return the graph outputs."""
    return [_port(v) for v in model.graph.output]


def _port(value: onnx.ValueInfoProto) -> Port:
    if not value.type.HasField("tensor_type"):
        held = value.type.WhichOneof("value") or "nothing known"
        raise UnsupportedError(
            f"{value.name!r} is no tensor but {held.removesuffix('_type')}",
            "only tensors go in and out of models here",
        )
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Port(value.name, tensor.elem_type, None)
    return Port(value.name, tensor.elem_type, tuple(_dim(d) for d in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        # Some exporters write -1 or 0 for "unknown".
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param or None


def dtype_of(kind: int) -> np.dtype[Any]:
    """Return the numpy type of an ONNX element type (bfloat16 is ml_dtypes')."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def is_float(dtype: np.dtype[Any]) -> bool:
    """Say whether a numpy type is a real floating type, ml_dtypes' included."""
    return dtype.kind == "f" or "float" in dtype.name


_SMALL = 1024  # elements: shape inference reads constants only where they are shapes


def inferred(model: onnx.ModelProto) -> dict[str, Port]:
    """Return type and shape of every value that ONNX's shape inference can tell.

    Weights are left out of what it is given, so that memory stays small at any model size.
    """
    shell = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    shell.opset_import.extend(model.opset_import)
    shell.functions.extend(model.functions)
    graph = shell.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.value_info.extend(model.graph.value_info)
    graph.output.extend(model.graph.output)
    constants = {t.name for t in model.graph.initializer}
    graph.input.extend(v for v in model.graph.input if v.name not in constants)
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims, dtype=np.int64)) <= _SMALL and not tensor.external_data:
            graph.initializer.append(tensor)
        else:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    graph = onnx.shape_inference.infer_shapes(shell, data_prop=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    found = {v.name: _port(v) for v in values if v.type.HasField("tensor_type")}
    for tensor in graph.initializer:
        found[tensor.name] = Port(tensor.name, tensor.data_type, tuple(tensor.dims))
    return found
