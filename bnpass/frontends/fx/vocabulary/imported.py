"""The functions that an imported ONNX model calls where torch has none of that meaning."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.targets import Handler, exact
from bnpass.frontends.fx.vocabulary.activations import clip as clip_row
from bnpass.frontends.fx.vocabulary.activations import prelu as prelu_row
from bnpass.frontends.fx.vocabulary.arithmetic import binary
from bnpass.frontends.fx.vocabulary.norms import batch_norm as batch_norm_row
from bnpass.frontends.fx.vocabulary.norms import group_norm as group_norm_row
from bnpass.frontends.fx.vocabulary.norms import instance_norm as instance_norm_row
from bnpass.frontends.fx.vocabulary.structure import reshape as reshape_row
from bnpass.importer.functions import (
    activation,
    common,
    conv,
    elementwise,
    norm,
    padding,
    pooling,
    shape,
)


def ints(argument: Any) -> list[int]:
    """Whole numbers that are written in the graph."""
    if not isinstance(argument, list | tuple) or not all(isinstance(v, int) for v in argument):
        raise UnknownError("a shape is computed")
    return list(argument)


def _row(kind: str) -> Handler:
    def row(call: Call, x: Any, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        call.emit(kind, [call.value(x)])

    return row


for _function, _kind in (
    (conv.local_response_norm, "LRN"),
    (activation.softmax_from, "Softmax"),
    (activation.log_softmax_from, "LogSoftmax"),
    (pooling.global_average_pool, "GlobalAveragePool"),
    (pooling.global_max_pool, "GlobalMaxPool"),
    (shape.shape, "Shape"),
    (shape.size, "Shape"),
    (shape.expand, "Expand"),
    (common.fixed_batch, "Identity"),
):
    exact(_function)(_row(_kind))

exact(activation.prelu)(prelu_row)
exact(activation.clip)(clip_row)
exact(elementwise.div)(lambda call, a, b: binary(call, "Div", a, b, ("a", "b")))
exact(shape.reshape, shape.flatten, shape.squeeze, shape.unsqueeze)(reshape_row)
exact(norm.batch_norm)(
    lambda call, x, mean, var, scale, bias, eps: batch_norm_row(
        call, x, mean, var, scale, bias, False, 0.1, eps
    )
)
exact(norm.group_norm)(group_norm_row)
exact(norm.instance_norm)(
    lambda call, x, weight, bias, eps: instance_norm_row(
        call, x, weight=weight, bias=bias, eps=eps
    )
)


@exact(shape.reverse_axes)
def reverse_axes(call: Call, x: Any) -> None:
    """Transpose without perm."""
    call.emit("Transpose", [call.value(x)])


@exact(shape.tile)
def tile(call: Call, x: Any, repeats: Any) -> None:
    """Tile."""
    call.emit("Tile", [call.value(x), call.ints("repeats", ints(repeats))])


@exact(shape.split, shape.split_evenly)
def split(call: Call, x: Any, sizes: Any, axis: int) -> None:
    """Split; the sizes are those of the results."""
    del sizes
    call.emit("Split", [call.value(x)], {"axis": call.axis(x, axis)})


@exact(shape.slice_axes)
def slice_axes(call: Call, x: Any, starts: Any, ends: Any, axes: Any, steps: Any) -> None:
    """Slice."""
    inputs = [call.value(x)]
    for role, numbers in (("starts", starts), ("ends", ends), ("axes", axes), ("steps", steps)):
        inputs.append("" if numbers is None else call.ints(role, ints(numbers)))
    call.emit("Slice", inputs)


@exact(shape.depth_to_space)
def depth_to_space(call: Call, x: Any, size: int) -> None:
    """DepthToSpace, mode DCR."""
    call.emit("DepthToSpace", [call.value(x)], {"blocksize": size, "mode": "DCR"})


@exact(shape.space_to_depth)
def space_to_depth(call: Call, x: Any, size: int) -> None:
    """SpaceToDepth."""
    call.emit("SpaceToDepth", [call.value(x)], {"blocksize": size})


@exact(padding.pad)
def pad(
    call: Call, x: Any, pads: Any, mode: str = "constant", value: Any = None, axes: Any = None
) -> None:
    """Pad."""
    inputs = [call.value(x), call.ints("pads", ints(pads)), "", ""]
    if mode == "constant":
        inputs[2] = _fill(call, x, value)
    if axes is not None:
        inputs[3] = call.ints("axes", ints(axes))
    call.emit("Pad", inputs, {"mode": mode}, slots={2: "value"}, scalars=[2])


def _fill(call: Call, x: Any, value: Any) -> str:
    if value is not None and not isinstance(value, int | float):
        return call.value(value)
    return call.constant("value", np.asarray(float(value or 0)), call.info(x).dtype)


@exact(padding.auto_pad)
def auto_pad(
    call: Call, x: Any, kernel: Any, strides: Any, dilations: Any, upper: bool, value: float = 0.0
) -> None:
    """Pads as auto_pad SAME asks for this size."""
    sizes = call.shape(x)[-len(kernel) :]
    known = [n for n in sizes if isinstance(n, int)]
    if len(known) < len(kernel):
        raise UnknownError("its padding depends on sizes that are not known")
    same = padding.same_pads(known, kernel, strides, dilations, upper)
    lead, half = [0] * (len(call.shape(x)) - len(kernel)), len(kernel)
    pads = call.ints("pads", [*lead, *same[:half], *lead, *same[half:]])
    call.emit(
        "Pad",
        [call.value(x), pads, _fill(call, x, value)],
        {"mode": "constant"},
        slots={2: "value"},
        scalars=[2],
    )


@exact(conv.convolution)
def convolution(
    call: Call, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    groups: int,
) -> None:  # fmt: skip
    """Conv whose number of spatial axes was not known."""
    rank = len(call.shape(x)) - 2
    wide = [list(v) * rank if len(v) == 1 else list(v) for v in (stride, padding, dilation)]
    attrs = {"group": groups, "strides": wide[0], "pads": wide[1] * 2, "dilations": wide[2]}
    names = [call.value(x), call.value(weight), call.value(bias)]
    call.emit("Conv", names, attrs, slots={1: "weight", 2: "bias"})


@exact(conv.conv_transpose)
def conv_transpose(
    call: Call, x: Any, weight: Any, bias: Any, strides: Any, dilations: Any, groups: int,
    pads: Any, output_padding: Any, output_shape: Any, same: str,
) -> None:  # fmt: skip
    """ConvTranspose."""
    known = output_shape is None and not same
    attrs = {
        "group": groups, "strides": list(strides), "dilations": list(dilations),
        "pads": list(pads) if known else None, "output_padding": list(output_padding),
    }  # fmt: skip
    names = [call.value(x), call.value(weight), call.value(bias)]
    call.emit("ConvTranspose", names, attrs, slots={1: "weight", 2: "bias"})


@exact(pooling.max_pool)
def max_pool(call: Call, x: Any, *args: Any) -> None:
    """MaxPool."""
    del args
    call.emit("MaxPool", [call.value(x)])


@exact(pooling.max_pool_with_indices)
def max_pool_with_indices(call: Call, x: Any, *args: Any) -> None:
    """MaxPool with its indices."""
    del args
    call.emit("MaxPool", [call.value(x)])


@exact(pooling.average_pool)
def average_pool(
    call: Call, x: Any, kernel: Any, strides: Any, dilations: Any, pads: Any, ceil_mode: bool,
    count_include_pad: bool,
) -> None:  # fmt: skip
    """AveragePool."""
    del kernel, strides, dilations
    fixed = list(pads) if isinstance(pads, list | tuple) else None
    attrs = {
        "pads": fixed,
        "ceil_mode": int(ceil_mode),
        "count_include_pad": int(count_include_pad),
    }
    call.emit("AveragePool", [call.value(x)], attrs)
