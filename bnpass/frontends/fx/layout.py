"""How values lie in memory, and BatchNorms that leave them so.

A user's ``view`` behind a value depends on it; torch's BatchNorm writes its result row by row, or
channels last, however its input lies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

Tensor = torch.Tensor


def order_of(value: Tensor) -> tuple[int, ...] | None:
    """The axes by falling stride; None where that is their own order, or nothing can be said."""
    if value.layout is not torch.strided or not value.numel() or value.is_contiguous():
        return None
    strides: tuple[Any, ...] = value.stride()
    if not all(isinstance(s, int) and s for s in strides):  # symbols, or an expanded axis
        return None
    order = tuple(sorted(range(value.dim()), key=lambda axis: -strides[axis]))
    return order if order != tuple(range(value.dim())) else None


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes another."""
    return tuple(order.index(axis) for axis in range(len(order)))


def is_kept(order: tuple[int, ...] | None, axis: int) -> bool:
    """Whether torch's BatchNorm over an axis leaves a value in this order of its axes."""
    rank = len(order or ())
    return order is None or (axis == 1 and rank > 3 and order == (0, *range(2, rank), 1))


def normalised(norm: nn.Module, value: Tensor, axis: int) -> Tensor:
    """A BatchNorm of a value, laid out in memory as the value is.

    Args:
        norm: BatchNorm1d where the channels are the last of more than two axes, else of the
            value's rank.
        value: (N, C, ...), or (N, ..., C).
        axis: that of the channels, counted from the front.
    """
    order = order_of(value)
    if order is not None and not is_kept(order, axis):
        rows = value.permute(order)
        return _of_rows(norm, rows, order.index(axis), value.dim(), axis).permute(inverse(order))
    if axis == 1:
        made: Tensor = norm(value)
        return made
    flat: Tensor = norm(value.reshape(-1, value.shape[-1]))
    return flat.view(value.shape)


def row_by_row() -> fx.GraphModule:
    """What a BatchNorm still does that does nothing else any more; it unpickles without bnpass."""
    graph = fx.Graph()
    value = graph.placeholder("input")
    graph.output(graph.call_method("contiguous", (value,)))
    return fx.GraphModule(nn.Module(), graph, "RowByRow")


def _of_rows(norm: nn.Module, rows: Tensor, at: int, rank: int, axis: int) -> Tensor:
    """The norm of a value that lies row by row, its channels anywhere."""
    ones = [1] * (rank - 3 if axis == 1 else 0)  # BatchNorm2d takes four axes
    front = rows.shape[:at].numel()
    made: Tensor = norm(rows.reshape(front, rows.shape[at], -1, *ones))
    return made.view(rows.shape)
