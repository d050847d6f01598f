"""Pools that no single torch call covers: uneven pads, dilations, integer types, ONNX indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnpass.importer.functions.common import Ints, ints
from bnpass.importer.functions.conv import CONV
from bnpass.importer.functions.padding import torch_order

MAX_POOL: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def global_average_pool(x: Tensor) -> Tensor:
    """(N, C, D1, ...) -> (N, C, 1, ...)."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """(N, C, D1, ...) -> (N, C, 1, ...)."""
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


def global_lp_pool(x: Tensor, p: int) -> Tensor:
    """(N, C, D1, ...) -> (N, C, 1, ...): the p-norm over all spatial axes."""
    dims = tuple(range(2, x.dim()))
    return x.abs().pow(p).sum(dim=dims, keepdim=True).pow(1.0 / p)


def _with_ceil(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> list[int]:
    """The pads with ends long enough for ceil_mode; no window may start in the end pad."""
    rank, grown = len(kernel), list(pads)
    for a in range(rank):
        reach = (kernel[a] - 1) * dilations[a] + 1
        room = sizes[a] + pads[a] + pads[a + rank] - reach
        steps = -(-room // strides[a])
        if steps * strides[a] >= sizes[a] + pads[a]:
            steps -= 1
        grown[a + rank] += max(0, steps * strides[a] - room)
    return grown


def _lowest(dtype: torch.dtype) -> float:
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """ONNX MaxPool (22) with any pads and any numeric type."""
    return _max_pool(x, kernel, strides, dilations, pads, ceil_mode)[0]


def max_pool_with_indices(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
    storage_order: int,
) -> tuple[Tensor, Tensor]:
    """ONNX MaxPool (22) with Indices into the flattened x; storage_order 1: last axis first."""
    y, where = _max_pool(x, kernel, strides, dilations, pads, ceil_mode)
    rank, sizes = len(kernel), x.shape[2:]
    grown = [n + pads[a] + where[1][a] for a, n in enumerate(sizes)]
    index = where[0]
    coordinates: list[Tensor] = []
    for a in reversed(range(rank)):
        coordinates.insert(0, index % grown[a] - pads[a])
        index = index // grown[a]
    flat = torch.zeros_like(where[0])
    order = range(rank) if storage_order == 0 else reversed(range(rank))
    for a in order:
        flat = flat * sizes[a] + coordinates[a]
    plane = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    plane = plane.reshape(x.shape[0], x.shape[1], *[1] * rank)
    return y, flat + plane * int(torch.Size(sizes).numel())


def _max_pool(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, tuple[Tensor, list[int]]]:
    rank = len(kernel)
    ends = _with_ceil(x.shape[2:], kernel, strides, dilations, pads) if ceil_mode else list(pads)
    padded = F.pad(x, torch_order(ends), value=_lowest(x.dtype)) if any(ends) else x
    wide = padded if x.dtype.is_floating_point else padded.to(torch.float64)
    y, index = MAX_POOL[rank](
        wide, tuple(kernel), tuple(strides), 0, tuple(dilations), return_indices=True
    )
    return y.to(x.dtype), (index, ends[rank:])


def average_pool(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:
    """ONNX AveragePool (22): sums by a convolution with ones, divided by what was counted."""
    ends = _with_ceil(x.shape[2:], kernel, strides, dilations, pads) if ceil_mode else list(pads)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_include_pad:
        ones = F.pad(ones, torch_order(pads), value=1.0)
        extra = [0] * len(kernel) + [e - p for e, p in zip(ends, pads, strict=True)][len(kernel) :]
        ones = F.pad(ones, torch_order(extra))
    else:
        ones = F.pad(ones, torch_order(ends))
    slide = _Slide(kernel, strides, dilations, x)
    flat = F.pad(x, torch_order(ends)).flatten(0, 1).unsqueeze(1)
    mean = slide(flat) / slide(ones)
    return mean.reshape(x.shape[0], x.shape[1], *mean.shape[2:])


def lp_pool(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
    p: int,
) -> Tensor:
    """ONNX LpPool (22): the p-norm of each window."""
    ends = _with_ceil(x.shape[2:], kernel, strides, dilations, pads) if ceil_mode else list(pads)
    flat = F.pad(x.abs().pow(p), torch_order(ends)).flatten(0, 1).unsqueeze(1)
    total = _Slide(kernel, strides, dilations, x)(flat).pow(1.0 / p)
    return total.reshape(x.shape[0], x.shape[1], *total.shape[2:])


class _Slide:
    """Sums over windows."""

    def __init__(
        self, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], x: Tensor
    ) -> None:
        self.weight = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
        self.args = (tuple(strides), 0, tuple(dilations))
        self.conv: Any = CONV[len(kernel)]

    def __call__(self, x: Tensor) -> Tensor:
        total: Tensor = self.conv(x, self.weight, None, *self.args)
        return total


def auto_pads(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    upper: bool,
) -> list[int]:
    """The pads that auto_pad SAME means for ``x`` (all begins, then all ends)."""
    from bnpass.importer.functions.padding import same_pads

    return same_pads(x.shape[2:], kernel, strides, dilations, upper)


def max_unpool(
    x: Tensor, indices: Tensor, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int],
    output_shape: Ints | None,
) -> Tensor:  # fmt: skip
    """ONNX MaxUnpool (22): each value at its index in the flattened output, zeros elsewhere."""
    rank = len(kernel)
    inferred = [
        (n - 1) * strides[a] - pads[a] - pads[a + rank] + kernel[a]
        for a, n in enumerate(x.shape[2:])
    ]
    shape = [*x.shape[:2], *inferred]
    natural = torch.zeros(shape, dtype=x.dtype, device=x.device).flatten()
    natural = natural.scatter(0, indices.flatten(), x.flatten()).reshape(shape)
    wanted = shape if output_shape is None else ints(output_shape)
    if wanted == shape:
        return natural
    grow = [0] * len(shape) + [o - s for o, s in zip(wanted, shape, strict=True)]
    return F.pad(natural, torch_order(grow))
