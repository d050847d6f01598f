"""Local functions: those that hold a BatchNormalization are inlined, so that it can fold."""

from __future__ import annotations

import onnx
import onnx.inliner


def inline_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every local function inlined that has a BatchNormalization somewhere inside.

    A function is shared by its calls, whose weights differ: each call gets its own nodes. The
    model itself comes back where there is nothing to inline.
    """
    wanted = _with_norms(model)
    if not wanted:
        return model
    inlined: onnx.ModelProto = onnx.inliner.inline_selected_functions(
        model, sorted(wanted), exclude=False
    )
    return inlined


def _with_norms(model: onnx.ModelProto) -> set[tuple[str, str]]:
    found = {
        (f.domain, f.name)
        for f in model.functions
        if any(node.op_type == "BatchNormalization" for node in f.node)
    }
    while True:
        callers = {
            (f.domain, f.name)
            for f in model.functions
            if any((node.domain, node.op_type) in found for node in f.node)
        }
        if callers <= found:
            return found
        found |= callers
