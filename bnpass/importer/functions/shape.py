"""Moving elements, and shape arithmetic (small int64 tensors on the CPU)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnpass.importer.functions.common import Ints, ints


def reshape(x: Tensor, shape: Ints, allowzero: bool = False) -> Tensor:
    """ONNX Reshape (21): 0 copies the size of x at that axis unless ``allowzero``."""
    wanted = ints(shape)
    if not allowzero:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(x: Tensor, axis: int) -> Tensor:
    """ONNX Flatten (21): (product of the axes before ``axis``, product of the others)."""
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    axis = axis + x.dim() if axis < 0 else axis
    rows, columns = torch.Size(x.shape[:axis]).numel(), torch.Size(x.shape[axis:]).numel()
    return x.reshape(rows, columns)


def reverse_axes(x: Tensor) -> Tensor:
    """ONNX Transpose without perm."""
    return x.permute(tuple(reversed(range(x.dim()))))


def squeeze(x: Tensor, axes: Ints) -> Tensor:
    """ONNX Squeeze (21): each of ``axes`` must have size 1."""
    chosen = ints(axes)
    if any(x.shape[a] != 1 for a in chosen):
        raise ValueError(f"cannot squeeze axes {chosen} of the shape {tuple(x.shape)}")
    return x.squeeze(tuple(chosen)) if chosen else x


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """ONNX Unsqueeze (21): ``axes`` count in the result."""
    chosen = ints(axes)
    rank = x.dim() + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


def expand(x: Tensor, shape: Ints) -> Tensor:
    """ONNX Expand (13): x broadcast with ``shape``."""
    wanted = ints(shape)
    rank = max(x.dim(), len(wanted))
    own, other = ([1] * (rank - len(s)) + list(s) for s in (x.shape, wanted))
    return x.expand([a if b == 1 else b for a, b in zip(own, other, strict=True)])


def tile(x: Tensor, repeats: Ints) -> Tensor:
    """ONNX Tile (13)."""
    return x.repeat(ints(repeats)) if x.dim() else x


def split(x: Tensor, sizes: Ints, axis: int) -> tuple[Tensor, ...]:
    """ONNX Split (18) into given sizes."""
    return tuple(torch.split(x, ints(sizes), dim=axis))


def split_evenly(x: Tensor, count: int, axis: int) -> tuple[Tensor, ...]:
    """ONNX Split (18) into ``count`` equal parts; the last may be smaller, even empty."""
    whole = x.shape[axis]
    each = -(-whole // count)
    starts = [min(i * each, whole) for i in range(count)]
    return tuple(x.narrow(axis, s, min(each, whole - s)) for s in starts)


_WHOLE = (2**31 - 1, 2**63 - 1)


def slice_axes(
    x: Tensor, starts: Ints, ends: Ints, axes: Ints | None, steps: Ints | None
) -> Tensor:
    """ONNX Slice (13): numpy's slices, with starts and ends clamped.

    A largest int as the end of a slice backwards means the whole rest, as in onnxruntime.
    """
    first, last = ints(starts), ints(ends)
    where = list(range(len(first))) if axes is None else ints(axes)
    by = [1] * len(first) if steps is None else ints(steps)
    for axis, start, end, step in zip(where, first, last, by, strict=True):
        stop = None if step < 0 and end in _WHOLE else end
        taken = range(*slice(start, stop, step).indices(x.shape[axis]))
        if step > 0:
            x = x[_along(axis % x.dim(), slice(taken.start, max(taken.stop, taken.start), step))]
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))
    return x


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, part)


def depth_to_space(x: Tensor, size: int) -> Tensor:
    """ONNX DepthToSpace (13), mode DCR: (N, b*b*C, H, W) -> (N, C, H*b, W*b)."""
    n, c, h, w = x.shape
    split_ = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return split_.reshape(n, c // size**2, h * size, w * size)


def space_to_depth(x: Tensor, size: int) -> Tensor:
    """ONNX SpaceToDepth (13): (N, C, H*b, W*b) -> (N, b*b*C, H, W)."""
    n, c, h, w = x.shape
    split_ = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return split_.reshape(n, c * size**2, h // size, w // size)


def shape(x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    """ONNX Shape (15): int64 on the CPU."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def divide(a: int, b: int) -> int:
    """ONNX Div (14) of whole numbers: towards zero."""
    return a // b if (a < 0) == (b < 0) else -(-a // b)


def size(x: Tensor) -> Tensor:
    """ONNX Size (13): int64 on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def full(shape: Ints, value: float, dtype: torch.dtype) -> Tensor:
    """ONNX ConstantOfShape (9)."""
    device = shape.device if isinstance(shape, Tensor) else None
    return torch.full(ints(shape), value, dtype=dtype, device=device)


Number = float | Tensor


def arange(start: Number, limit: Number, delta: Number, dtype: torch.dtype) -> Tensor:
    """ONNX Range (11): ceil((limit - start) / delta) numbers, none if that is negative."""
    device = start.device if isinstance(start, Tensor) else None
    first, last, step = (v.item() if isinstance(v, Tensor) else v for v in (start, limit, delta))
    count = max(0, math.ceil((last - first) / step))
    return (torch.arange(count, device=device) * step + first).to(dtype)


def eye_like(x: Tensor, k: int, dtype: torch.dtype | None) -> Tensor:
    """ONNX EyeLike (22): ones on the k-th diagonal, of the type of ``x`` unless one is given."""
    rows, columns = x.shape
    ones = torch.ones(rows, columns, dtype=dtype or x.dtype, device=x.device)
    return torch.triu(torch.tril(ones, k), k)


def trilu(x: Tensor, k: int | Tensor, upper: bool) -> Tensor:
    """ONNX Trilu (14): the triangle from the k-th diagonal on, of the last two axes."""
    return torch.triu(x, int(k)) if upper else torch.tril(x, int(k))


def repeat_like(x: Tensor, like: Tensor, axis: int) -> Tensor:
    """A constant of one sample for every sample of ``like``, whose batch is on the same axis."""
    sizes = [-1] * x.dim()
    sizes[axis] = like.shape[axis]
    return x.expand(sizes)
