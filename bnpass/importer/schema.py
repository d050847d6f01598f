"""Element types of an operator's outputs, read from onnx's own operator schemas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import onnx
import torch

from bnpass.importer.values import torch_dtype
from bnpass.onnx_model.attributes import attribute

_BY_NAME = {
    "tensor(float)": torch.float32,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
    "tensor(int32)": torch.int32,
}


@lru_cache(maxsize=4096)
def _formals(op_type: str, domain: str, opset: int) -> tuple[list[str], list[str], bool] | None:
    if not onnx.defs.has(op_type, domain):
        return None
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    variadic = any(
        f.option == onnx.defs.OpSchema.FormalParameterOption.Variadic for f in schema.outputs
    )
    return [f.type_str for f in schema.inputs], [f.type_str for f in schema.outputs], variadic


def output_dtypes(
    node: onnx.NodeProto, opset: int, inputs: Sequence[torch.dtype | None]
) -> list[torch.dtype | None]:
    """The element type of each output, None where it cannot be told."""
    stated = attribute(node, "to") or attribute(node, "dtype")
    if stated:
        return [torch_dtype(stated)] * len(node.output)
    if node.op_type == "ConstantOfShape":
        value = attribute(node, "value")
        return [torch_dtype(1 if value is None else value.data_type)]
    found = _formals(node.op_type, node.domain, opset)
    if found is None:
        return [None] * len(node.output)
    ins, outs, variadic = found
    result = []
    for index in range(len(node.output)):
        kind = outs[index] if index < len(outs) else (outs[-1] if variadic else "")
        result.append(_BY_NAME.get(kind) or _same_as(kind, ins, inputs))
    return result


def _same_as(
    kind: str, formal: Sequence[str], inputs: Sequence[torch.dtype | None]
) -> torch.dtype | None:
    for index, dtype in enumerate(inputs):
        name = formal[min(index, len(formal) - 1)] if formal else ""
        if name == kind and dtype is not None:
            return dtype
    return None
