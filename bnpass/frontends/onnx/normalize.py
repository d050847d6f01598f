"""ONNX nodes of any opset from 7 on, said in the newest operators' words.

Attributes that later became inputs become constant inputs, ``auto_pad`` becomes ``pads``, and
the flags that changed their place (training, mode) become attributes of the neutral view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bnpass.errors import InputError
from bnpass.ir.graph import Constant, Dim
from bnpass.onnx_model.attributes import attribute, node_name, plain_attributes
from bnpass.onnx_model.constants import dtype_name


@dataclass(frozen=True)
class Context:
    """What a node is normalised with.

    Attributes:
        opset: the version of ONNX's own operators.
        constant: a constant by value name, or None.
        shape: a value's dimensions, or None.
        dtype: numpy's name of a value's element type, or None.
        made: adds a constant input that the frontend makes up; returns its name.
    """

    opset: int
    constant: Callable[[str], Constant | None]
    shape: Callable[[str], tuple[Dim, ...] | None]
    dtype: Callable[[str], str | None]
    made: Callable[[str, np.ndarray], str]


def normalize(
    node: onnx.NodeProto, inputs: list[str], context: Context
) -> tuple[str, dict[str, Any]]:
    """(kind, attributes) of a node in the neutral vocabulary; its inputs are changed in place."""
    kind, attrs = node.op_type, plain_attributes(node)
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}::{kind}", attrs
    rewrite = _NORMALIZERS.get(kind)
    if rewrite is not None:
        rewrite(node, inputs, attrs, context)
    return kind, attrs


_Normalizer = Callable[[onnx.NodeProto, list[str], dict[str, Any], Context], None]


def _pads(node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context) -> None:
    auto = attrs.pop("auto_pad", "NOTSET")
    if auto == "VALID":
        attrs["pads"] = []
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        attrs["pads"] = _same_pads(node, inputs, attrs, context, auto)
    if node.op_type == "ConvTranspose" and "output_shape" in attrs:
        attrs["pads"] = None


def _conv(node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context) -> None:
    """Without a bias of zeros that is no vector.

    torch's exporter writes the bias that a 3-d convolution does not have as zeros of shape (C, 2),
    which onnxruntime does not take; a fold mends it.
    """
    _pads(node, inputs, attrs, context)
    bias = context.constant(inputs[2]) if len(inputs) > 2 and inputs[2] else None
    if bias is None or len(bias.shape) == 1:
        return
    if np.any(bias.small):
        raise InputError(
            f"not a valid ONNX model: the bias {inputs[2]!r} of {node_name(node)!r} has the shape "
            f"{list(bias.shape)}",
            "a bias is one number a channel",
        )
    inputs[2] = ""


def _same_pads(
    node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context, auto: str
) -> list[int] | None:
    """What SAME pads where that does not depend on the size: nothing for a kernel of 1, whatever
    the stride; all that a convolution's window reaches beyond its position, where it moves by 1.
    """
    kernel = attrs.get("kernel_shape")
    if kernel is None:
        weight = context.constant(inputs[1]) if len(inputs) > 1 else None
        kernel = weight.shape[2:] if weight is not None else None
    if kernel is None:
        return None
    if all(k == 1 for k in kernel):
        return []
    if node.op_type != "Conv" or any(s != 1 for s in attrs.get("strides", ())):
        return None
    dilations = attrs.get("dilations", [1] * len(kernel))
    total = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    less, more = [n // 2 for n in total], [n - n // 2 for n in total]
    return more + less if auto == "SAME_LOWER" else less + more


def _axes(node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context) -> None:
    if "axes" in attrs:
        _extend(inputs, 1, context.made(f"{node.output[0]}#axes", np.array(attrs.pop("axes"))))


def _extend(inputs: list[str], index: int, name: str) -> None:
    inputs.extend([""] * (index + 1 - len(inputs)))
    inputs[index] = name


def _pad(node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context) -> None:
    if context.opset >= 11:
        return
    _extend(inputs, 1, context.made(f"{node.output[0]}#pads", np.array(attrs.pop("pads"))))
    value = float(attrs.pop("value", 0.0))
    dtype = context.dtype(inputs[0]) or "float32"
    _extend(inputs, 2, context.made(f"{node.output[0]}#value", np.array(value, dtype)))


def _slice(
    node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context
) -> None:
    if context.opset >= 10:
        return
    for index, name in ((1, "starts"), (2, "ends"), (3, "axes")):
        if name in attrs:
            made = context.made(f"{node.output[0]}#{name}", np.array(attrs.pop(name)))
            _extend(inputs, index, made)


def _clip(node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context) -> None:
    if context.opset >= 11:
        return
    for index, name in ((1, "min"), (2, "max")):
        if name in attrs:
            value = np.array(attrs.pop(name), np.float32)
            _extend(inputs, index, context.made(f"{node.output[0]}#{name}", value))


def _resize(
    node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context
) -> None:
    """Scales are input 2, as in Resize since opset 11."""
    if "scales" in attrs:
        scales = np.array(attrs.pop("scales"), np.float32)
        _extend(inputs, 2, context.made(f"{node.output[0]}#scales", scales))
    elif node.op_type == "Upsample" or context.opset < 11:
        inputs[1:] = ["", *inputs[1:]]


def _dropout(
    node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context
) -> None:
    """Inference unless its training_mode input (opset 12) may be true with a ratio above 0."""
    if context.opset < 12:
        ratio = np.array(attrs.pop("ratio", 0.5), np.float32)
        _extend(inputs, 1, context.made(f"{node.output[0]}#ratio", ratio))
    training = inputs[2] if len(inputs) > 2 else ""
    constant = context.constant(training) if training else None
    attrs["training"] = bool(training) and (constant is None or bool(constant.small))


def _batch_norm(
    node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context
) -> None:
    """training_mode since opset 14; before, more than one output meant training."""
    if context.opset >= 14:
        attrs["training"] = bool(attrs.pop("training_mode", 0))
    else:
        attrs["training"] = sum(bool(name) for name in node.output) > 1
    attrs["epsilon"] = float(np.float32(attrs.get("epsilon", 1e-5)))


def _cast(node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context) -> None:
    attrs["to"] = dtype_name(int(attrs["to"]))
    attrs["from"] = context.dtype(inputs[0])


def _group_norm(
    node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context
) -> None:
    attrs["per_group"] = context.opset < 21


def _scales(
    node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context
) -> None:
    """Opset 13 brought the axis, and with it a scale for each entry along it."""
    attrs["one_scale"] = context.opset < 13


def _softmax(
    node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context
) -> None:
    """Before opset 13 over all axes from ``axis`` on, the first of them 1 by default."""
    if context.opset < 13:
        attrs["axes_from"] = attrs.pop("axis", 1)


def _constant_of_shape(
    node: onnx.NodeProto, inputs: list[str], attrs: dict[str, Any], context: Context
) -> None:
    filled = attribute(node, "value")
    attrs["value"] = 0.0 if filled is None else numpy_helper.to_array(filled).reshape(-1)[0].item()


_NORMALIZERS: dict[str, _Normalizer] = {
    "QuantizeLinear": _scales,
    "DequantizeLinear": _scales,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "AveragePool": _pads,
    "MaxPool": _pads,
    "ReduceMean": _axes,
    "ReduceSum": _axes,
    "ReduceMax": _axes,
    "ReduceMin": _axes,
    "Pad": _pad,
    "Slice": _slice,
    "Clip": _clip,
    "Dropout": _dropout,
    "Resize": _resize,
    "Upsample": _resize,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "GroupNormalization": _group_norm,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Hardmax": _softmax,
    "ConstantOfShape": _constant_of_shape,
}
