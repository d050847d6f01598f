"""Padding: explicit, automatic (auto_pad), and ONNX Pad."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bnpass.importer.functions.common import Ints, ints


def torch_order(pads: Sequence[int]) -> tuple[int, ...]:
    """ONNX pads (all begins, all ends) in the order of ``F.pad`` (last axis first)."""
    half = len(pads) // 2
    return tuple(p for axis in reversed(range(half)) for p in (pads[axis], pads[axis + half]))


def same_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    upper: bool,
) -> list[int]:
    """ONNX pads that auto_pad SAME_UPPER or SAME_LOWER means for these spatial sizes."""
    totals = [
        max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    small = [t // 2 for t in totals]
    large = [t - t // 2 for t in totals]
    return small + large if upper else large + small


def auto_pad(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    upper: bool,
    value: float = 0.0,
) -> Tensor:
    """``x`` padded as auto_pad SAME_UPPER or SAME_LOWER asks; kernel is per spatial axis."""
    sizes = x.shape[x.dim() - len(kernel) :]
    pads = same_pads(sizes, kernel, strides, dilations, upper)
    return F.pad(x, torch_order(pads), value=value) if any(pads) else x


def pad(
    x: Tensor,
    pads: Ints,
    mode: str = "constant",
    value: float | Tensor | None = None,
    axes: Ints | None = None,
) -> Tensor:
    """ONNX Pad (opset 23), every mode, any rank; negative pads crop."""
    amounts = ints(pads)
    chosen = list(range(x.dim())) if axes is None else [a % x.dim() for a in ints(axes)]
    begin = dict(zip(chosen, amounts[: len(chosen)], strict=True))
    end = dict(zip(chosen, amounts[len(chosen) :], strict=True))
    if mode == "constant":
        full = [begin.get(a, 0) for a in range(x.dim())] + [end.get(a, 0) for a in range(x.dim())]
        return _constant(x, full, value)
    for axis in chosen:
        if begin[axis] or end[axis]:
            index = _positions(x.shape[axis], begin[axis], end[axis], mode)
            x = x.index_select(axis, torch.tensor(index, device=x.device))
    return x


def _constant(x: Tensor, pads: Sequence[int], value: float | Tensor | None) -> Tensor:
    number = value.item() if isinstance(value, Tensor) else (value or 0)
    if x.dtype == torch.bool:
        return F.pad(x.to(torch.uint8), torch_order(pads), value=int(number)).to(torch.bool)
    return F.pad(x, torch_order(pads), value=number)


def _positions(size: int, begin: int, end: int, mode: str) -> list[int]:
    wanted = range(-begin, size + end)
    if mode == "edge":
        return [min(max(i, 0), size - 1) for i in wanted]
    if mode == "wrap":
        return [i % size for i in wanted]
    period = max(1, 2 * (size - 1))
    folded = [i % period for i in wanted]
    return [i if i < size else period - i for i in folded]
