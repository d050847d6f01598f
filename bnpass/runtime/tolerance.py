"""Tolerances that follow from the coarsest floating type of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from bnpass.onnx_model.attributes import attribute
from bnpass.onnx_model.scopes import all_nodes


@dataclass(frozen=True)
class Tolerance:
    """The rule |a - b| <= atol + rtol * max|a|, elementwise, with max over the whole tensor a.

    Attributes:
        rtol: relative to the tensor's largest magnitude.
        atol: absolute.
        dtype: the type that they were derived from.
    """

    rtol: float
    atol: float
    dtype: str = "float32"


_BY_TYPE = {
    TensorProto.DOUBLE: Tolerance(1e-8, 1e-10, "float64"),
    TensorProto.FLOAT: Tolerance(1e-4, 1e-5, "float32"),
    TensorProto.FLOAT16: Tolerance(1e-2, 1e-3, "float16"),
    TensorProto.BFLOAT16: Tolerance(5e-2, 1e-2, "bfloat16"),
}
"""From the finest to the coarsest."""


def tolerance(
    models: Iterable[onnx.ModelProto], rtol: float | None = None, atol: float | None = None
) -> Tolerance:
    """Return the tolerance for comparing models: that of their coarsest type, unless given.

    Args:
        models: the ONNX models among the two that are compared.
        rtol: wins over the type's.
        atol: wins over the type's.
    """
    found = {kind for model in models for kind in _types(model)}
    order: list[int] = list(_BY_TYPE)
    coarsest = max((order.index(k) for k in found if k in _BY_TYPE), default=1)
    base = list(_BY_TYPE.values())[coarsest]
    return Tolerance(
        base.rtol if rtol is None else rtol, base.atol if atol is None else atol, base.dtype
    )


def _types(model: onnx.ModelProto) -> Iterator[int]:
    graph = model.graph
    for tensor in graph.initializer:
        yield tensor.data_type
    for value in [*graph.input, *graph.output]:
        yield value.type.tensor_type.elem_type
    for node in all_nodes(model):
        if node.op_type == "Cast":
            yield attribute(node, "to", 0)
        held = attribute(node, "value", None) if node.op_type == "Constant" else None
        if isinstance(held, TensorProto):
            yield held.data_type
