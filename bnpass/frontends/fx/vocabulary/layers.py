"""Convolutions, linear layers and products with a constant: where maps are absorbed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.targets import function, module

Size = int | Sequence[int]


def each(value: Any, rank: int) -> list[int]:
    """One number for every spatial axis."""
    if isinstance(value, int):
        return [value] * rank
    if not isinstance(value, list | tuple) or not all(isinstance(v, int) for v in value):
        raise UnknownError("a size is computed")
    return list(value) * rank if len(value) == 1 else list(value)


def batched(call: Call, x: Any, spatial: int) -> None:
    """Refuse an input without a batch axis: its channels are not axis 1."""
    if len(call.shape(x)) != spatial + 2:
        raise UnknownError("an input without a batch axis")


# --- Conv ----------------------------------------------------------------------------------------


def _pads(padding: Any, kernel: list[int], dilation: list[int]) -> list[int] | None:
    """ONNX's pads: all begins, then all ends."""
    if padding == "valid":
        return [0] * 2 * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [t // 2 for t in totals] + [t - t // 2 for t in totals]
    return each(padding, len(kernel)) * 2


def _conv(
    call: Call, x: Any, names: list[str], slots: dict[int, str], *,
    stride: Any, padding: Any, dilation: Any, groups: int, zeros: bool = True,
) -> None:  # fmt: skip
    weight = call.reading.infos[names[0]].shape
    spatial = len(weight) - 2
    batched(call, x, spatial)
    spread = each(dilation, spatial)
    kernel = [int(k) for k in weight[2:] if isinstance(k, int)]
    attrs = {
        "group": int(groups),
        "strides": each(stride, spatial),
        "dilations": spread,
        "pads": _pads(padding, kernel, spread) if zeros else None,
    }
    call.emit("Conv", [call.value(x), *names], attrs, slots=slots)


@module(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def conv_module(call: Call, x: Any) -> None:
    """ONNX Conv; padding_mode other than zeros is padding that no shift passes."""
    m: Any = call.module
    names = [call.parameter("weight"), call.parameter("bias")]
    _conv(
        call, x, names, {1: "weight", 2: "bias"}, stride=m.stride, padding=m.padding,
        dilation=m.dilation, groups=m.groups, zeros=m.padding_mode == "zeros",
    )  # fmt: skip


@function("conv1d", "conv2d", "conv3d")
def conv(
    call: Call, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> None:  # fmt: skip
    """ONNX Conv."""
    names = [call.value(weight), call.value(bias)]
    _conv(
        call, x, names, {1: "weight", 2: "bias"}, stride=stride, padding=padding,
        dilation=dilation, groups=groups,
    )  # fmt: skip


@function("aten.convolution")
def convolution(
    call: Call, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> None:  # fmt: skip
    """ATen's one operator for both directions."""
    names, slots = [call.value(weight), call.value(bias)], {1: "weight", 2: "bias"}
    if transposed:
        _conv_transpose(
            call, x, names, slots, stride=stride, padding=padding,
            output_padding=output_padding, groups=groups, dilation=dilation,
        )  # fmt: skip
    else:
        _conv(
            call, x, names, slots, stride=stride, padding=padding, dilation=dilation,
            groups=groups,
        )  # fmt: skip


# --- ConvTranspose -------------------------------------------------------------------------------


def _conv_transpose(
    call: Call, x: Any, names: list[str], slots: dict[int, str], *,
    stride: Any, padding: Any, output_padding: Any, groups: int, dilation: Any, known: bool = True,
) -> None:  # fmt: skip
    spatial = len(call.reading.infos[names[0]].shape) - 2
    batched(call, x, spatial)
    attrs = {
        "group": int(groups),
        "strides": each(stride, spatial),
        "dilations": each(dilation, spatial),
        "output_padding": each(output_padding, spatial),
        "pads": each(padding, spatial) * 2 if known else None,
    }
    call.emit("ConvTranspose", [call.value(x), *names], attrs, slots=slots)


@module(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def conv_transpose_module(call: Call, x: Any, output_size: Any = None) -> None:
    """ONNX ConvTranspose; with an output size its padding is not known."""
    m: Any = call.module
    names = [call.parameter("weight"), call.parameter("bias")]
    _conv_transpose(
        call, x, names, {1: "weight", 2: "bias"}, stride=m.stride, padding=m.padding,
        output_padding=m.output_padding, groups=m.groups, dilation=m.dilation,
        known=output_size is None,
    )  # fmt: skip


@function("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    call: Call, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> None:  # fmt: skip
    """ONNX ConvTranspose."""
    names = [call.value(weight), call.value(bias)]
    _conv_transpose(
        call, x, names, {1: "weight", 2: "bias"}, stride=stride, padding=padding,
        output_padding=output_padding, groups=groups, dilation=dilation,
    )  # fmt: skip


# --- Gemm, MatMul, Einsum ------------------------------------------------------------------------


@module(nn.Linear)
def linear_module(call: Call, x: Any) -> None:
    """Gemm with transB=1; its A may have any rank."""
    names = [call.value(x), call.parameter("weight"), call.parameter("bias")]
    call.emit("Gemm", names, {"transB": 1}, slots={1: "weight", 2: "bias"})


@function("linear")
def linear(call: Call, x: Any, weight: Any, bias: Any = None) -> None:
    """Gemm with transB=1; its A may have any rank."""
    if len(call.shape(weight)) != 2:
        raise UnknownError("a weight that is no matrix")
    names = [call.value(x), call.value(weight), call.value(bias)]
    call.emit("Gemm", names, {"transB": 1}, slots={1: "weight", 2: "bias"})


@function("addmm")
def addmm(
    call: Call, x: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1
) -> None:  # fmt: skip
    """Gemm: alpha * mat1 @ mat2 + beta * input."""
    if not isinstance(beta, int | float) or not isinstance(alpha, int | float):
        raise UnknownError("a factor is computed")
    names = [call.value(mat1), call.value(mat2), call.value(x)]
    attrs = {"alpha": float(alpha), "beta": float(beta)}
    call.emit("Gemm", names, attrs, slots={0: "mat1", 1: "mat2", 2: "x"})


@function("matmul", "__matmul__", "bmm", "mm", "mv")
def matmul(call: Call, x: Any, other: Any) -> None:
    """numpy.matmul."""
    call.emit("MatMul", [call.value(x), call.value(other)], slots={0: "x", 1: "other"})


@function("torch.einsum")
def einsum(call: Call, equation: str, *operands: Any) -> None:
    """Einsum; operands side by side or in one list."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        _einsum(call, equation, operands[0], "*1:")
    else:
        _einsum(call, equation, operands, "*")


@function("aten.einsum")
def einsum_list(call: Call, equation: str, tensors: Any, path: Any = None) -> None:
    """Einsum over a list of operands."""
    del path
    _einsum(call, equation, tensors, "tensors:")


def _einsum(call: Call, equation: str, operands: Any, slot: str) -> None:
    first = 1 if slot == "*" else 0
    names = [call.value(v) for v in operands]
    slots = {i: f"{slot}{i + first}" for i in range(len(names))}
    call.emit("Einsum", names, {"equation": equation}, slots=slots)


@module(nn.Embedding)
def embedding_module(call: Call, x: Any) -> None:
    """Gather rows of a table; max_norm rewrites the table on every call."""
    if getattr(call.module, "max_norm", None) is not None:
        raise UnknownError("max_norm")
    names = [call.parameter("weight"), call.value(x)]
    call.emit("Gather", names, {"axis": 0}, slots={0: "weight"})


@function("F.embedding")
def embedding(
    call: Call, x: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> None:  # fmt: skip
    """Gather rows of a table."""
    del padding_idx, norm_type, scale_grad_by_freq, sparse
    if max_norm is not None:
        raise UnknownError("max_norm")
    call.emit("Gather", [call.value(weight), call.value(x)], {"axis": 0}, slots={0: "weight"})


@function("torch.embedding", "aten.embedding")
def embedding_aten(
    call: Call, weight: Any, indices: Any, padding_idx: int = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> None:  # fmt: skip
    """Gather rows of a table."""
    del padding_idx, scale_grad_by_freq, sparse
    names = [call.value(weight), call.value(indices)]
    call.emit("Gather", names, {"axis": 0}, slots={0: "weight"})
