"""Functions that move entries: shapes, axes, joining, taking apart, pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.info import Info
from bnpass.frontends.fx.targets import function, module
from bnpass.ir.graph import Dim

# --- Reshape -------------------------------------------------------------------------------------


@function(
    "reshape", "view", "flatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "unflatten",
    "ravel", "_unsafe_view", "Tensor.view",
)  # fmt: skip
def reshape(call: Call, x: Any, *args: Any, **kwargs: Any) -> None:
    """Reshape: the shapes on both sides say it all; ``view`` may also change the type."""
    del args, kwargs
    if call.info(x).dtype != call.result.dtype:
        raise UnknownError("it changes the type")
    call.emit("Reshape", [call.value(x)])


@module(nn.Flatten, nn.Unflatten)
def flatten_module(call: Call, x: Any) -> None:
    """Reshape."""
    call.emit("Reshape", [call.value(x)])


@function("expand", "expand_as", "broadcast_to")
def expand(call: Call, x: Any, *args: Any, **kwargs: Any) -> None:
    """Expand."""
    del args, kwargs
    call.emit("Expand", [call.value(x)])


@function("repeat", "tile")
def repeat(call: Call, x: Any, *sizes: Any) -> None:
    """Tile; new axes come in front."""
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    info = call.info(x)
    extra = len(sizes) - len(info.shape)
    if extra < 0 or not all(isinstance(n, int) for n in sizes):
        raise UnknownError("its repeats are computed")
    name = call.value(x)
    if extra:
        wider = Info((1,) * extra + info.shape, info.dtype)
        name = call.step("Unsqueeze", [name], wider)
    call.emit("Tile", [name, call.ints("repeats", sizes)])


# --- Transpose -----------------------------------------------------------------------------------


def _transpose(call: Call, x: Any, perm: Sequence[int]) -> None:
    call.emit("Transpose", [call.value(x)], {"perm": list(perm)})


@function("permute")
def permute(call: Call, x: Any, *dims: Any) -> None:
    """Transpose."""
    axes = dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims
    _transpose(call, x, [call.axis(x, d) for d in axes])


@function("transpose", "swapaxes", "swapdims")
def transpose(call: Call, x: Any, dim0: Any, dim1: Any) -> None:
    """Transpose of two axes."""
    perm = list(range(len(call.shape(x))))
    a, b = call.axis(x, dim0), call.axis(x, dim1)
    perm[a], perm[b] = perm[b], perm[a]
    _transpose(call, x, perm)


@function("t")
def matrix_transpose(call: Call, x: Any) -> None:
    """Transpose of a matrix."""
    _transpose(call, x, range(len(call.shape(x)))[::-1])


@function("movedim", "moveaxis")
def movedim(call: Call, x: Any, source: Any, destination: Any) -> None:
    """Transpose: one axis to another place."""
    if not isinstance(source, int) or not isinstance(destination, int):
        raise UnknownError("it moves several axes")
    perm = [a for a in range(len(call.shape(x))) if a != call.axis(x, source)]
    perm.insert(call.axis(x, destination), call.axis(x, source))
    _transpose(call, x, perm)


# --- Concat, Split -------------------------------------------------------------------------------


@function("cat", "concat", "concatenate")
def concat(call: Call, tensors: Any, dim: Any = 0, axis: Any = None) -> None:
    """Concat."""
    parts = list(tensors)
    where = call.axis(parts[0], dim if axis is None else axis)
    call.emit("Concat", [call.value(x) for x in parts], {"axis": where})


@function("stack")
def stack(call: Call, tensors: Any, dim: Any = 0) -> None:
    """Unsqueeze every value, then Concat."""
    parts = list(tensors)
    rank = len(call.result.shape)
    where = dim + rank if dim < 0 else dim
    names = []
    for x in parts:
        info = call.info(x)
        shape = (*info.shape[:where], 1, *info.shape[where:])
        names.append(call.step("Unsqueeze", [call.value(x)], Info(shape, info.dtype)))
    call.emit("Concat", names, {"axis": where})


@function("chunk", "split", "tensor_split", "split_with_sizes")
def split(call: Call, x: Any, sizes: Any, dim: Any = 0, **kwargs: Any) -> None:
    """Split; the sizes are those of the results."""
    del sizes, kwargs
    call.emit("Split", [call.value(x)], {"axis": call.axis(x, dim)})


@function("unbind")
def unbind(call: Call, x: Any, dim: Any = 0) -> None:
    """One Gather for each entry along the axis."""
    axis, name = call.axis(x, dim), call.value(x)
    for i in range(len(call.results)):
        call.part(i, "Gather", [name, call.scalar(f"index{i}", i)], {"axis": axis})


# --- pixels and channels -------------------------------------------------------------------------


def _regroup(call: Call, x: Any, split_: Sequence[Dim], perm: Sequence[int]) -> None:
    """Reshape, Transpose, Reshape."""
    dtype = call.info(x).dtype
    apart = call.step("Reshape", [call.value(x)], Info(tuple(split_), dtype))
    moved = Info(tuple(split_[p] for p in perm), dtype)
    turned = call.step("Transpose", [apart], moved, {"perm": list(perm)})
    call.emit("Reshape", [turned])


def _shuffle(call: Call, x: Any, factor: Any) -> None:
    if len(call.shape(x)) != 4:
        raise UnknownError("an input that is not (N, C, H, W)")
    call.emit("DepthToSpace", [call.value(x)], {"blocksize": int(factor), "mode": "CRD"})


def _unshuffle(call: Call, x: Any, factor: Any) -> None:
    """Channel c, row i and column j of a block become channel c*r*r + i*r + j."""
    shape = call.shape(x)
    if len(shape) != 4 or not isinstance(shape[2], int) or not isinstance(shape[3], int):
        raise UnknownError("an input that is not (N, C, H, W)")
    n, c, h, w = shape
    r = int(factor)
    assert isinstance(h, int) and isinstance(w, int)  # noqa: PT018
    _regroup(call, x, (n, c, h // r, r, w // r, r), (0, 1, 3, 5, 2, 4))


@module(nn.PixelShuffle)
def pixel_shuffle_module(call: Call, x: Any) -> None:
    """DepthToSpace, mode CRD."""
    _shuffle(call, x, getattr(call.module, "upscale_factor", 0))


@function("pixel_shuffle")
def pixel_shuffle(call: Call, x: Any, upscale_factor: Any) -> None:
    """DepthToSpace, mode CRD."""
    _shuffle(call, x, upscale_factor)


@module(nn.PixelUnshuffle)
def pixel_unshuffle_module(call: Call, x: Any) -> None:
    """SpaceToDepth in torch's order of the channels, which ONNX does not have."""
    _unshuffle(call, x, getattr(call.module, "downscale_factor", 0))


@function("pixel_unshuffle")
def pixel_unshuffle(call: Call, x: Any, downscale_factor: Any) -> None:
    """SpaceToDepth in torch's order of the channels, which ONNX does not have."""
    _unshuffle(call, x, downscale_factor)


def _channel_shuffle(call: Call, x: Any, groups: Any) -> None:
    n, c, *rest = call.shape(x)
    if not isinstance(c, int):
        raise UnknownError("the number of channels is not known")
    tail = range(3, 3 + len(rest))
    _regroup(call, x, (n, groups, c // groups, *rest), (0, 2, 1, *tail))


@module(nn.ChannelShuffle)
def channel_shuffle_module(call: Call, x: Any) -> None:
    """Reshape, Transpose, Reshape."""
    _channel_shuffle(call, x, getattr(call.module, "groups", 1))


@function("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call, x: Any, groups: Any) -> None:
    """Reshape, Transpose, Reshape."""
    _channel_shuffle(call, x, groups)
