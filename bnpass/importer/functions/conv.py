"""Convolutions that no single torch call covers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnpass.errors import InputError

CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """ONNX Conv whose number of spatial axes is only known when it runs."""
    rank = x.dim() - 2
    args: list[Any] = [tuple(v) * rank if len(v) == 1 else tuple(v) for v in (stride, padding)]
    spread = tuple(dilation) * rank if len(dilation) == 1 else tuple(dilation)
    result: Tensor = CONV[rank](x, weight, bias, *args, spread, groups)
    return result


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    groups: int,
    pads: Sequence[int] | None,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
    same: str,
) -> Tensor:
    """ONNX ConvTranspose with uneven pads, an output shape, or auto_pad.

    As in onnxruntime auto_pad makes nothing larger, and an output shape that the kernel does not
    reach is filled with the bias at the ends (by less than a stride: InputError beyond).

    Args:
        x: (N, C, D1, ...).
        weight: (C, M/groups, k1, ...).
        bias: (M,) or None.
        pads: all begins, then all ends; None is 0, as strides and dilations of None are 1.
        same: the node's auto_pad.
    """
    rank = x.dim() - 2
    spatial = x.shape[2:]
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads, output_padding = pads or (0,) * 2 * rank, output_padding or (0,) * rank
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    full = [
        s * (n - 1) + o + r
        for s, n, o, r in zip(strides, spatial, output_padding, reach, strict=True)
    ]
    wanted: Sequence[int] | None = None
    if output_shape is not None:
        wanted = output_shape[-rank:]
    elif same.startswith("SAME"):
        wanted = [n * s for n, s in zip(spatial, strides, strict=True)]
    if wanted is not None:
        if any(w - f >= s for w, f, s in zip(wanted, full, strides, strict=True)) and output_shape:
            raise InputError(
                f"an output_shape of {list(wanted)} lies a stride or more beyond the {full} that "
                f"the input reaches", "onnxruntime computes no such ConvTranspose correctly"
            )
        total = [max(0, f - w) for f, w in zip(full, wanted, strict=True)]
        half, rest = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = half + rest if same == "SAME_UPPER" else rest + half
    y: Tensor = CONV_TRANSPOSE[rank](
        x, weight, None, tuple(strides), 0, 0, groups, tuple(dilations)
    )
    sizes = output_shape or [f - pads[a] - pads[a + rank] for a, f in enumerate(full)]
    crop: list[int] = []
    for axis in reversed(range(rank)):
        crop += [-pads[axis], sizes[axis - rank] - (y.shape[axis + 2] - pads[axis])]
    y = F.pad(y, crop) if any(crop) else y
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """ONNX LRN (13) for an even window, which reaches one channel further up than down."""
    channels = x.shape[1]
    below, above = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = F.pad(torch.square(x).flatten(2), [0, 0, below, above])
    total = sum(squares.narrow(1, i, channels) for i in range(size))
    assert isinstance(total, Tensor)
    return x / (bias + alpha / size * total.reshape(x.shape)) ** beta
