"""The gates of LSTM and GRU: in ONNX's order in the file, in torch's in the module.

torch's kernels want i, f, c, o (LSTM) and r, z, h (GRU); ONNX has i, o, f, c and z, r, h. To put
them in order in every step costs a copy of all weights, so a constant that only such kernels read
is put in order once, at the import, and back again by ``write_back``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch

from bnpass.onnx_model.attributes import attributes, is_onnx
from bnpass.onnx_model.scopes import graphs

Order = tuple[int, ...]
"""Blocks along axis 1 of ONNX's tensor, in the order in which the module holds them."""

GATES: Mapping[str, Order] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Which of ONNX's gates is torch's first, second ..."""

USUAL = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
"""The activations that torch's kernels have; those of RNN may all be relu too."""

WEIGHTS, BIAS, _LENGTHS, _PEEPHOLES = (1, 2), 3, 4, 7


def fits_kernel(node: onnx.NodeProto) -> bool:
    """Whether torch has a kernel for a recurrent node; else a loop over time computes it."""
    if not is_onnx(node, *GATES):
        return False
    given = attributes(node)
    directions = 2 if given.get("direction") == "bidirectional" else 1
    usual = USUAL[node.op_type] * directions
    names = tuple(n.lower() for n in given.get("activations", ())) or usual
    relu = node.op_type == "RNN" and names == ("relu",) * directions
    resets = node.op_type != "GRU" or bool(given.get("linear_before_reset", 0))
    extra = any(node.input[i : i + 1] != [""] and i < len(node.input)
                for i in (_LENGTHS, _PEEPHOLES))  # fmt: skip
    plain = "clip" not in given and not given.get("input_forget", 0)
    return (names == usual or relu) and resets and plain and not extra


def order_of(kind: str, index: int) -> Order:
    """The blocks of input ``index`` (W, R or B) in torch's order; B is Wb and then Rb."""
    gates = GATES[kind]
    return gates if index in WEIGHTS else (*gates, *(len(gates) + g for g in gates))


def gate_orders(
    graph: onnx.GraphProto, kernel: Callable[[onnx.NodeProto], bool]
) -> dict[str, Order]:
    """The values that only recurrent kernels read, all in one order, and that order.

    Args:
        graph: with all graphs inside.
        kernel: whether a node will be computed by torch's kernel.
    """
    found: dict[str, Order] = {}
    for part in graphs(graph):
        for node in part.node:
            if node.op_type == "Identity" and not node.domain:
                continue  # of a weight it is another weight
            ours = fits_kernel(node) and kernel(node)
            for index, name in enumerate(node.input):
                gated = ours and index in (*WEIGHTS, BIAS)
                order = order_of(node.op_type, index) if gated else ()
                found[name] = order if found.get(name, order) == order else ()
        found.update((output.name, ()) for output in part.output)
    return {name: order for name, order in found.items() if order != tuple(range(len(order)))}


def fits(order: Order, shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape has such blocks."""
    return len(shape) > 1 and bool(order) and shape[1] % len(order) == 0


def arranged(tensor: Any, order: Order) -> Any:
    """A copy of an array or a torch tensor with the blocks of axis 1 in this order."""
    size = tensor.shape[1] // len(order)
    blocks = [tensor[:, block * size : (block + 1) * size] for block in order]
    return torch.cat(blocks, 1) if isinstance(tensor, torch.Tensor) else np.concatenate(blocks, 1)


def inverse(order: Order) -> Order:
    """The order that undoes ``order``."""
    return tuple(order.index(block) for block in range(len(order)))
