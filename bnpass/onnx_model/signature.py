"""What a model takes and gives: names, element types, shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bnpass.errors import UnsupportedError
from bnpass.ir.graph import Dim
from bnpass.onnx_model.shapes import dims, infer, stated


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
    return Port(value.name, value.type.tensor_type.elem_type, stated(value))


def dtype_of(kind: int) -> np.dtype[Any]:
    """Return the numpy type of an ONNX element type (bfloat16 is ml_dtypes')."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def is_float(dtype: np.dtype[Any]) -> bool:
    """Say whether a numpy type is a real floating type, ml_dtypes' included."""
    return dtype.kind == "f" or "float" in dtype.name


def inferred(model: onnx.ModelProto) -> dict[str, Port]:
    """Return type and shape of every value of the main graph that shape inference can tell."""
    known = infer(model)[()]
    found = {n: Port(n, t.elem_type, dims(t)) for n, t in known.types.items() if t.elem_type}
    for tensor in model.graph.initializer:
        found[tensor.name] = Port(tensor.name, tensor.data_type, tuple(tensor.dims))
    return found
