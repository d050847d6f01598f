"""Conv, ConvTranspose and LRN."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from bnpass.importer.functions import conv as functions
from bnpass.importer.functions import padding
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg


@dataclass(frozen=True)
class Window:
    """How a kernel slides: one entry a spatial axis; pads are all begins, then all ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    same: str  # SAME_UPPER or SAME_LOWER where the pads depend on the input's size

    @property
    def even(self) -> bool:
        """Whether begins and ends are equal, as torch's own padding argument has it."""
        half = len(self.pads) // 2
        return not self.same and self.pads[:half] == self.pads[half:]

    @property
    def begins(self) -> tuple[int, ...]:
        """The pads in front of each axis."""
        return self.pads[: len(self.kernel)]


def window(op: ImportedNode, kernel: tuple[int, ...]) -> Window:
    """The window of a Conv or pool node with its auto_pad resolved where that is possible."""
    rank = len(kernel)
    strides = op.attr("strides", (1,) * rank)
    dilations = op.attr("dilations", (1,) * rank)
    pads = op.attr("pads", (0,) * (2 * rank))
    same = op.attr("auto_pad", "NOTSET")
    if same == "VALID":
        pads = (0,) * (2 * rank)
    if not same.startswith("SAME"):
        same = ""
    elif op.node.op_type != "ConvTranspose" and set(strides) == {1}:
        reach = [1] * rank  # with stride 1 the total is the same for every size
        pads = tuple(padding.same_pads(reach, kernel, strides, dilations, same == "SAME_UPPER"))
        same = ""
    return Window(kernel, tuple(strides), tuple(dilations), tuple(pads), same)


def padded(op: ImportedNode, x: Arg, w: Window, value: float = 0.0) -> Arg:
    """``x`` with the window's pads applied to it."""
    if w.same:
        upper = w.same == "SAME_UPPER"
        return op.call(padding.auto_pad, x, w.kernel, w.strides, w.dilations, upper, value)
    if any(w.pads):
        return op.call(F.pad, x, padding.torch_order(w.pads), value=value)
    return x


def kernel_of(op: ImportedNode) -> tuple[int, ...] | None:
    """The kernel's spatial shape: of the weight if it is constant, else as the attribute says."""
    shape = op.shape(1)
    kernel = shape[2:] if shape is not None else op.attr("kernel_shape")
    if kernel is not None and not 1 <= len(kernel) <= 3:
        op.fail(f"{len(kernel)} spatial axes (torch has 1 to 3)")
    return kernel


@register_op("Conv")
def conv(op: ImportedNode) -> Arg:
    """W is (M, C/group, k1, ...), B is (M,)."""
    kernel = kernel_of(op)
    x, weight, bias, groups = op.tensor(0), op.weight(1), op.weight(2), op.attr("group", 1)
    if kernel is None:
        return _conv_of_unknown_rank(op, x, weight, bias, groups)
    w = window(op, kernel)
    pads = w.begins
    if not w.even:
        x, pads = padded(op, x, w), (0,) * len(kernel)
    given = (_short(w.strides), _short(pads), _short(w.dilations), groups)
    last = max((i + 1 for i in range(4) if given[i] != (1, 0, 1, 1)[i]), default=0)
    return op.call(functions.CONV[len(kernel)], x, weight, bias, *given[:last])


def _short(values: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number where all are equal: torch takes both, and the code reads better."""
    return values[0] if len(set(values)) == 1 else values


def _conv_of_unknown_rank(op: ImportedNode, x: Arg, weight: Arg, bias: Arg, groups: int) -> Arg:
    pads = op.attr("pads", (0, 0))
    half = len(pads) // 2
    if op.attr("auto_pad", "NOTSET") != "NOTSET" or pads[:half] != pads[half:]:
        op.fail("a computed weight without kernel_shape and with uneven pads")
    strides, dilations = op.attr("strides", (1,)), op.attr("dilations", (1,))
    return op.call(
        functions.convolution, x, weight, bias, strides, pads[:half], dilations, groups
    )


@register_op("ConvTranspose")
def conv_transpose(op: ImportedNode) -> Arg:
    """W is (C, M/group, k1, ...), B is (M,)."""
    kernel = kernel_of(op)
    x, weight, bias, groups = op.tensor(0), op.weight(1), op.weight(2), op.attr("group", 1)
    shape = op.attr("output_shape")
    if kernel is None:
        given = (op.attr("pads"), op.attr("output_padding"), shape, op.attr("auto_pad", ""))
        strides, dilations = op.attr("strides"), op.attr("dilations")
        return op.call(
            functions.conv_transpose, x, weight, bias, strides, dilations, groups, *given
        )
    rank = len(kernel)
    w = window(op, kernel)
    extra = op.attr("output_padding", (0,) * rank)
    limits = [max(s, d) for s, d in zip(w.strides, w.dilations, strict=True)]
    simple = all(e < m for e, m in zip(extra, limits, strict=True))
    if w.even and shape is None and simple:
        function = functions.CONV_TRANSPOSE[rank]
        return op.call(
            function, x, weight, bias, w.strides, w.begins, tuple(extra), groups, w.dilations
        )
    return op.call(
        functions.conv_transpose, x, weight, bias, w.strides, w.dilations, groups, w.pads,
        tuple(extra), shape, w.same,
    )  # fmt: skip


@register_op("LRN")
def lrn(op: ImportedNode) -> Arg:
    """Across channels; alpha is divided by size, as in torch."""
    args = (op.attr("size"), op.attr("alpha", 1e-4), op.attr("beta", 0.75), op.attr("bias", 1.0))
    odd = args[0] % 2 == 1
    return op.call(F.local_response_norm if odd else functions.local_response_norm,
                   op.tensor(0), *args)  # fmt: skip
