"""Conv, ConvTranspose and their integer kin, in any number of spatial dimensions."""

from __future__ import annotations

from itertools import product

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, one, operator
from bnpass.verdict.evaluator.windows import grid_of, padded, pads_of, per_axis, windows


def convolve(call: Invocation, x: Array, w: Array) -> Array:
    """x (N, C, *spatial) with w (M, C/group, *kernel); the attributes are the call's."""
    kernel, group = w.shape[2:], call.attrs.get("group", 1)
    strides, dilations = grid_of(call, len(kernel))
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    x = padded(x, pads_of(call, x.shape[2:], span, strides))
    view = windows(x, kernel, strides, dilations)
    n, c, spatial = x.shape[0], x.shape[1], view.shape[2 : 2 + len(kernel)]
    if c != group * w.shape[1] or w.shape[0] % group:
        raise ValueError(f"{c} channels with a weight of {w.shape} in {group} groups")
    size = w.shape[1] * int(np.prod(kernel))
    parts = view.reshape(n, group, w.shape[1], *view.shape[2:])
    order = (1, 0, *range(3, 3 + len(kernel)), 2, *range(3 + len(kernel), parts.ndim))
    columns = parts.transpose(order).reshape(group, -1, size)
    kernels = w.reshape(group, w.shape[0] // group, size).transpose(0, 2, 1)
    made = (columns @ kernels).reshape(group, n, *spatial, w.shape[0] // group)
    made = np.moveaxis(made, -1, 1).swapaxes(1, 2)  # (group, N, M/group, *spatial)
    return np.moveaxis(made, 0, 1).reshape(n, w.shape[0], *spatial)


def biased(y: Array, bias: Array | None) -> Array:
    """Add a bias of one number a channel."""
    return y if bias is None else y + bias.reshape(-1, *([1] * (y.ndim - 2)))


@operator("Conv")
@one
def _conv(call: Invocation) -> Array:
    return biased(convolve(call, call[0], call[1]), call.get(2))


@operator("ConvInteger")
@one
def _conv_integer(call: Invocation) -> Array:
    x, w = (call[i].astype(np.int32) for i in (0, 1))
    for index, zero in ((0, call.get(2)), (1, call.get(3))):
        if zero is not None and index == 0:
            x = x - zero.astype(np.int32)
        elif zero is not None:
            w = w - zero.astype(np.int32).reshape(-1, *([1] * (w.ndim - 1)))
    return convolve(call, x, w)


@operator("ConvTranspose")
@one
def _conv_transpose(call: Invocation) -> Array:
    x, w = call[0], call[1]
    kernel, group = w.shape[2:], call.attrs.get("group", 1)
    axes = len(kernel)
    strides, dilations = grid_of(call, axes)
    more = per_axis(call, "output_padding", axes, 0)
    n, per = x.shape[0], w.shape[1]
    full = [
        (size - 1) * s + d * (k - 1) + 1 + o
        for size, s, d, k, o in zip(x.shape[2:], strides, dilations, kernel, more, strict=True)
    ]
    y = np.zeros((n, group * per, *full))
    xs = x.reshape(n, group, x.shape[1] // group, -1)
    ws = w.reshape(group, x.shape[1] // group, per, -1)
    for number, place in enumerate(product(*(range(k) for k in kernel))):
        part = np.einsum("ngcs,gcm->ngms", xs, ws[..., number], optimize=True)
        at = tuple(
            slice(p * d, p * d + (size - 1) * s + 1, s)
            for p, d, s, size in zip(place, dilations, strides, x.shape[2:], strict=True)
        )
        y[(slice(None), slice(None), *at)] += part.reshape(n, group * per, *x.shape[2:])
    return biased(_cropped(call, y, x.shape[2:], strides), call.get(2))


def _cropped(call: Invocation, y: Array, extent: tuple[int, ...], strides: list[int]) -> Array:
    """Take the pads off a transposed convolution's full output."""
    axes, auto = len(extent), call.attrs.get("auto_pad", "NOTSET")
    full, shape = y.shape[2:], call.attrs.get("output_shape")
    if shape is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = [n * s for n, s in zip(extent, strides, strict=True)]
    if shape is None:
        flat = [0] * (2 * axes) if auto == "VALID" else per_axis(call, "pads", 2 * axes, 0)
        pads = [(flat[i], flat[i + axes]) for i in range(axes)]
    else:
        pads = []
        for have, want in zip(full, shape, strict=True):
            total = have - want
            low = total // 2 if auto == "SAME_UPPER" else total - total // 2
            pads.append((low, total - low))
    cut = [slice(max(a, 0), n - max(b, 0)) for (a, b), n in zip(pads, full, strict=True)]
    y = y[(slice(None), slice(None), *cut)]
    grown = [(max(-a, 0), max(-b, 0)) for a, b in pads]
    return padded(y, grown)
