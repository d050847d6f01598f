"""Cast and CastLike."""

from __future__ import annotations

import torch

from bnpass.importer.functions import typing as functions
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg, torch_dtype, type_name

_FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)


def _cast(op: ImportedNode, dtype: torch.dtype) -> Arg:
    if dtype in _FLOAT8:
        return op.call(functions.to_float8, op.tensor(0), dtype, bool(op.attr("saturate", 1)))
    return op.method("to", op.tensor(0), dtype)


@register_op("Cast")
def cast(op: ImportedNode) -> Arg:
    """To the type of the attribute ``to``."""
    dtype = torch_dtype(op.attr("to"))
    if dtype is None:
        op.fail(f"Cast to {type_name(op.attr('to'))}")
    return _cast(op, dtype)


@register_op("CastLike")
def cast_like(op: ImportedNode) -> Arg:
    """To the type of the second input."""
    dtype = op.dtype(1)
    if dtype is None:
        saturate = bool(op.attr("saturate", 1))
        return op.call(functions.cast_like, op.tensor(0), op.tensor(1), saturate)
    return _cast(op, dtype)
