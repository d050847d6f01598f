"""Pools and interpolation."""

from __future__ import annotations

from typing import Any

from torch import nn

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.targets import function, module
from bnpass.frontends.fx.vocabulary.layers import batched, each

_RANKS = {"1d": 1, "2d": 2, "3d": 3}


def _spatial(call: Call, x: Any) -> int:
    """The number of spatial axes that the called thing's name says."""
    target: Any = call.node.target
    name = (
        type(call.module).__name__
        if call.module is not None
        else str(target if call.node.op == "call_method" else getattr(target, "__name__", target))
    )
    rank = next((r for n, r in _RANKS.items() if n in name), len(call.shape(x)) - 2)
    batched(call, x, rank)
    return rank


# --- maxima --------------------------------------------------------------------------------------


def _max_pool(
    call: Call, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: Any
) -> None:
    rank = _spatial(call, x)
    attrs = {
        "kernel_shape": each(kernel, rank),
        "strides": each(stride or kernel, rank),
        "pads": each(padding, rank) * 2,
        "dilations": each(dilation, rank),
        "ceil_mode": int(ceil),
    }
    call.emit("MaxPool", [call.value(x)], attrs)


@module(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def max_pool_module(call: Call, x: Any) -> None:
    """MaxPool; its indices are its second result."""
    m: Any = call.module
    _max_pool(call, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)


@function(
    "max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch", "max_pool1d_with_indices",
    "max_pool2d_with_indices", "max_pool3d_with_indices",
)  # fmt: skip
def max_pool(
    call: Call, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> None:  # fmt: skip
    """MaxPool; its indices are its second result."""
    del return_indices
    _max_pool(call, x, kernel_size, stride, padding, dilation, ceil_mode)


# --- averages ------------------------------------------------------------------------------------


def _average_pool(
    call: Call, x: Any, kernel: Any, stride: Any, padding: Any, ceil: Any, count: Any, divisor: Any
) -> None:
    rank = _spatial(call, x)
    if divisor is not None:
        raise UnknownError("a divisor of its own")
    attrs = {
        "kernel_shape": each(kernel, rank),
        "strides": each(stride or kernel, rank),
        "pads": each(padding, rank) * 2,
        "ceil_mode": int(ceil),
        "count_include_pad": int(count),
    }
    call.emit("AveragePool", [call.value(x)], attrs)


@module(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def average_pool_module(call: Call, x: Any) -> None:
    """AveragePool."""
    m: Any = call.module
    divisor = getattr(m, "divisor_override", None)
    args = m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad
    _average_pool(call, x, *args, divisor)


@function("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average_pool(
    call: Call, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
) -> None:  # fmt: skip
    """AveragePool."""
    _average_pool(
        call, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


# --- adaptive ------------------------------------------------------------------------------------


def _adaptive(call: Call, x: Any, kind: str, size: Any) -> None:
    rank = _spatial(call, x)
    sizes = list(size) if isinstance(size, list | tuple) else [size] * rank
    if any(not isinstance(n, int | None) for n in sizes):
        raise UnknownError("a size is computed")
    one = all(n == 1 for n in sizes)
    call.emit(f"Global{kind}" if one else kind, [call.value(x)])


@module(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
def adaptive_average_module(call: Call, x: Any) -> None:
    """GlobalAveragePool, or an AveragePool without padding."""
    m: Any = call.module
    _adaptive(call, x, "AveragePool", m.output_size)


@module(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
def adaptive_max_module(call: Call, x: Any) -> None:
    """GlobalMaxPool, or a MaxPool without padding."""
    m: Any = call.module
    _adaptive(call, x, "MaxPool", m.output_size)


@function("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_average(call: Call, x: Any, output_size: Any) -> None:
    """GlobalAveragePool, or an AveragePool without padding."""
    _adaptive(call, x, "AveragePool", output_size)


@function("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max(call: Call, x: Any, output_size: Any, return_indices: bool = False) -> None:
    """GlobalMaxPool, or a MaxPool without padding."""
    del return_indices
    _adaptive(call, x, "MaxPool", output_size)


# --- interpolation -------------------------------------------------------------------------------


@module(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def upsample_module(call: Call, x: Any) -> None:
    """Resize; the channels keep their axis."""
    call.emit("Resize", [call.value(x)])


@function(
    "interpolate", "upsample", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d",
    "_upsample_nearest_exact2d",
)  # fmt: skip
def interpolate(call: Call, x: Any, *args: Any, **kwargs: Any) -> None:
    """Resize; the channels keep their axis."""
    del args, kwargs
    call.emit("Resize", [call.value(x)])
