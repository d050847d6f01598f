"""Pools."""

from __future__ import annotations

from bnpass.importer.functions import pooling
from bnpass.importer.node import ImportedNode
from bnpass.importer.ops.conv import Window, window
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg


def _window(op: ImportedNode) -> Window:
    kernel = op.attr("kernel_shape")
    if not 1 <= len(kernel) <= 3:
        op.fail(f"{len(kernel)} spatial axes (torch has 1 to 3)")
    if op.attr("auto_pad", "NOTSET").startswith("SAME"):
        _check_same(op, kernel)
    return window(op, kernel)


def _check_same(op: ImportedNode, kernel: tuple[int, ...]) -> None:
    """Refuse automatic pads where onnxruntime's outputs have other sizes or places than ONNX's."""
    if max(op.attr("dilations", (1,))) > 1:
        op.fail("auto_pad with dilations: onnxruntime's sizes are not ONNX's")
    strides = op.attr("strides", (1,) * len(kernel))
    gaps = any(k < s for k, s in zip(kernel, strides, strict=True))
    crops = op.node.op_type == "LpPool" or (op.node.op_type == "AveragePool" and op.opset >= 19)
    if gaps and crops:
        op.fail("auto_pad with strides larger than the kernel: onnxruntime crops the input")


def _pads(op: ImportedNode, x: Arg, w: Window) -> Arg:
    """The pads, computed when it runs where auto_pad depends on the size."""
    if not w.same:
        return w.pads
    upper = w.same == "SAME_UPPER"
    return op.call(pooling.auto_pads, x, w.kernel, w.strides, w.dilations, upper)


def _fits_torch(w: Window) -> bool:
    half = all(2 * p <= k for p, k in zip(w.begins, w.kernel, strict=True))
    return w.even and half


@register_op("MaxPool")
def max_pool(op: ImportedNode) -> Arg:
    """Padding is -inf; Indices count in the flattened input."""
    w, x, ceil = _window(op), op.tensor(0), bool(op.attr("ceil_mode", 0))
    if op.wants(1):
        pair = op.call(
            pooling.max_pool_with_indices, x, w.kernel, w.strides, w.dilations, _pads(op, x, w),
            ceil, op.attr("storage_order", 0),
        )  # fmt: skip
        return op.items(pair, 2)
    if _fits_torch(w) and op.is_float():
        pool = pooling.MAX_POOL[len(w.kernel)]
        return op.call(pool, x, w.kernel, w.strides, w.begins, w.dilations, ceil)
    pads = _pads(op, x, w)
    return op.call(pooling.max_pool, x, w.kernel, w.strides, w.dilations, pads, ceil)


@register_op("AveragePool")
def average_pool(op: ImportedNode) -> Arg:
    """count_include_pad counts explicit pads, never what ceil_mode adds."""
    w, x = _window(op), op.tensor(0)
    ceil, count = bool(op.attr("ceil_mode", 0)), bool(op.attr("count_include_pad", 0))
    if _fits_torch(w) and set(w.dilations) == {1}:
        pool = pooling.AVG_POOL[len(w.kernel)]
        return op.call(pool, x, w.kernel, w.strides, w.begins, ceil, count)
    pads = _pads(op, x, w)
    return op.call(pooling.average_pool, x, w.kernel, w.strides, w.dilations, pads, ceil, count)


@register_op("LpPool")
def lp_pool(op: ImportedNode) -> Arg:
    """The p-norm of each window."""
    w, x = _window(op), op.tensor(0)
    ceil, p = bool(op.attr("ceil_mode", 0)), op.attr("p", 2)
    pads = _pads(op, x, w)
    return op.call(pooling.lp_pool, x, w.kernel, w.strides, w.dilations, pads, ceil, p)


@register_op("GlobalAveragePool")
def global_average_pool(op: ImportedNode) -> Arg:
    """The mean over all spatial axes."""
    return op.call(pooling.global_average_pool, op.tensor(0))


@register_op("GlobalMaxPool")
def global_max_pool(op: ImportedNode) -> Arg:
    """The maximum over all spatial axes."""
    return op.call(pooling.global_max_pool, op.tensor(0))


@register_op("GlobalLpPool")
def global_lp_pool(op: ImportedNode) -> Arg:
    """The p-norm over all spatial axes."""
    return op.call(pooling.global_lp_pool, op.tensor(0), op.attr("p", 2))


@register_op("MaxUnpool")
def max_unpool(op: ImportedNode) -> Arg:
    """The inverse of MaxPool with its Indices."""
    w = _window(op)
    shape = op.ints(2)
    return op.call(
        pooling.max_unpool, op.tensor(0), op.tensor(1), w.kernel, w.strides, w.pads, shape
    )


