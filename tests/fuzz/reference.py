"""onnx's reference evaluator, with those operators replaced that onnx 1.23 evaluates wrongly."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


class ConvTranspose(OpRun):
    """Grouped ones lose their bias in onnx 1.23, or fail."""

    def _run(self, x, w, b=None, *, dilations=None, group=None, pads=None, strides=None, **_: Any):
        group, spatial = group or 1, x.ndim - 2
        strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
        pads = pads or [0] * 2 * spatial
        sizes = zip(x.shape[2:], w.shape[2:], strides, dilations, strict=True)
        full = [s * (n - 1) + d * (k - 1) + 1 for n, k, s, d in sizes]
        y = np.zeros((x.shape[0], group, w.shape[1], *full), x.dtype)
        parts = x.reshape(x.shape[0], group, -1, *x.shape[2:])
        kernel = w.reshape(group, -1, *w.shape[1:])
        for at in product(*map(range, w.shape[2:])):
            steps = zip(at, x.shape[2:], strides, dilations, strict=True)
            window = tuple(slice(i * d, i * d + s * (n - 1) + 1, s) for i, n, s, d in steps)
            taps = kernel[(slice(None),) * 3 + at]
            y[(slice(None),) * 3 + window] += np.einsum("ngi...,gio->ngo...", parts, taps)
        ends = zip(pads[:spatial], pads[spatial:], full, strict=True)
        crop = tuple(slice(p, n - q) for p, q, n in ends)
        y = y.reshape(x.shape[0], -1, *full)[(slice(None), slice(None), *crop)]
        return (y if b is None else y + b.reshape(-1, *[1] * spatial),)


class GlobalMaxPool(OpRun):
    """onnx 1.23 drops an axis of a value of rank 3."""

    def _run(self, x):
        return (x.max(tuple(range(2, x.ndim)), keepdims=True),)


class MaxPool(OpRun):
    """onnx 1.23 reads beyond the end of some padded values."""

    def _run(self, x, *, kernel_shape=None, pads=None, strides=None, **_: Any):
        spatial = len(kernel_shape)
        pads = pads or [0] * 2 * spatial
        widths = [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)]
        padded = np.pad(x, widths, constant_values=-np.inf)
        axes = tuple(range(2, x.ndim))
        windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel_shape), axes)
        steps = tuple(slice(None, None, s) for s in strides or [1] * spatial)
        picked = windows[(slice(None), slice(None), *steps)]
        return (picked.max(tuple(range(-spatial, 0))).astype(x.dtype),)


def evaluate(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of a model by name."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        evaluator = ReferenceEvaluator(model, new_ops=[ConvTranspose, GlobalMaxPool, MaxPool])
        found = evaluator.run(None, inputs, intermediate=True)
    return {name: np.asarray(a) for name, a in found.items() if name and a is not None}
