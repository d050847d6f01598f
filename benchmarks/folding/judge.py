"""Says what a tool made of a model: folded, partly, left, wrong, or broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.patterns import Pattern

Array = np.ndarray[Any, Any]

_ARITHMETIC = frozenset({"Mul", "Add", "Sub", "Div", "Neg", "Sqrt", "Reciprocal"})


def affine(model: onnx.ModelProto) -> tuple[int, int]:
    """(BatchNormalizations, constant arithmetic operators) of a model, nested graphs included."""
    kinds = list(_affine_kinds(model.graph, set()))
    kinds += [n.op_type for f in model.functions for n in f.node
              if n.op_type == "BatchNormalization"]
    norms = kinds.count("BatchNormalization")
    return norms, len(kinds) - norms


def _affine_kinds(graph: onnx.GraphProto, outer: set[str]) -> Iterator[str]:
    fixed = outer | {t.name for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" or (node.input and all(i in fixed for i in node.input)):
            fixed |= set(node.output)
            if node.op_type in _ARITHMETIC:
                yield node.op_type
        elif node.op_type == "BatchNormalization" or (
            node.op_type in _ARITHMETIC and any(i in fixed for i in node.input)
        ):
            yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _affine_kinds(attribute.g, fixed)


def run(path: Path, feeds: dict[str, Array]) -> list[Array]:
    """The outputs on onnxruntime with every graph optimization off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, feeds)]


def feeds_for(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Random inputs; sizes that are symbolic become 2."""
    rng = np.random.default_rng(seed)
    constants = {t.name for t in model.graph.initializer}
    found = {}
    for port in model.graph.input:
        if port.name not in constants:
            tensor = port.type.tensor_type
            shape = [d.dim_value or 2 for d in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            found[port.name] = rng.standard_normal(shape).astype(dtype)
    return found


def error(before: list[Array], after: list[Array]) -> float:
    """The largest of max|a-b| / max|a| over the outputs."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        a, b = a.astype(np.float64), b.astype(np.float64)
        if a.shape != b.shape or not np.isfinite(b).all():
            return float("inf")
        largest = max(float(np.abs(a).max(initial=0)), 1e-30)
        worst = max(worst, float(np.abs(a - b).max(initial=0)) / largest)
    return worst


def verdict(pattern: Pattern, source: Path, target: Path) -> tuple[str, float]:
    """(mark, error): F folded, p partly, - left and right, W wrong, X no model that runs."""
    original = onnx.load(source)
    worst = 0.0
    try:
        after = onnx.load(target)
        for seed in (1, 2):
            feeds = feeds_for(original, seed)
            worst = max(worst, error(run(source, feeds), run(target, feeds)))
    except Exception:  # noqa: BLE001 - whatever a tool wrote, it is no model
        return "X", float("nan")
    if not worst <= pattern.tolerance:
        return "W", worst
    norms, others = affine(original)
    norms_left, others_left = affine(after)
    if norms_left == 0 and others_left <= pattern.stay:
        return "F", worst
    if norms_left < norms or (norms_left == norms and others_left < others):
        return "p", worst
    return "-", worst
