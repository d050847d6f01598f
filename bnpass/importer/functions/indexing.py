"""Gather, scatter, sort."""

from __future__ import annotations

import torch
from torch import Tensor

from bnpass.importer.functions.common import Ints, ints

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices with negative ones counted from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def gather(data: Tensor, indices: Tensor, axis: int) -> Tensor:
    """ONNX Gather (13): data (.., D, ..), indices of any shape S -> (.., S, ..)."""
    axis = axis % data.dim()
    index = _wrapped(indices.to(data.device), data.shape[axis])
    taken = data.index_select(axis, index.reshape(-1))
    return taken.reshape(*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])


def gather_elements(data: Tensor, indices: Tensor, axis: int) -> Tensor:
    """ONNX GatherElements (13)."""
    return torch.gather(data, axis, _wrapped(indices, data.shape[axis]))


def _coordinates(indices: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    return tuple(_wrapped(part, n) for part, n in zip(indices.unbind(-1), shape, strict=False))


def gather_nd(data: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """ONNX GatherND (13): the last axis of indices holds coordinates."""
    if batch_dims == 0:
        return data[_coordinates(indices, data.shape)]
    lead = data.shape[:batch_dims]
    flat = data.reshape(-1, *data.shape[batch_dims:])
    index = indices.reshape(-1, *indices.shape[batch_dims:])
    rows = [d[_coordinates(i, d.shape)] for d, i in zip(flat, index, strict=True)]
    result = torch.stack(rows)
    return result.reshape(*lead, *result.shape[1:])


def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str
) -> Tensor:
    """ONNX ScatterElements (18)."""
    index = _wrapped(indices, data.shape[axis])
    if reduction == "none":
        return data.scatter(axis, index, updates)
    return data.scatter_reduce(axis, index, updates, _REDUCE[reduction])


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """ONNX ScatterND (18): updates at the coordinates in the last axis of indices."""
    depth = indices.shape[-1]
    lead, rest = data.shape[:depth], data.shape[depth:]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device)
    for part, size in zip(_coordinates(indices, data.shape), lead, strict=True):
        flat = flat * size + part
    rows = data.reshape(-1, rest.numel())
    new = updates.reshape(-1, rest.numel())
    index = flat.reshape(-1, 1).expand_as(new)
    if reduction == "none":
        made = rows.scatter(0, index, new)
    else:
        made = rows.scatter_reduce(0, index, new, _REDUCE[reduction])
    return made.reshape(data.shape)


def top_k(x: Tensor, k: Ints, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """ONNX TopK (11), sorted; of equal values the one with the lower index comes first."""
    (count,) = ints(k)
    values, index = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), index.narrow(axis, 0, count)


def one_hot(indices: Tensor, depth: Ints, values: Tensor, axis: int) -> Tensor:
    """ONNX OneHot (11): values is (off, on); indices out of range give a row of off."""
    (count,) = ints(depth)
    index = indices.to(torch.int64)
    index = torch.where(index < 0, index + count, index).unsqueeze(axis)
    place = axis % index.dim()
    shape = [count if d == place else 1 for d in range(index.dim())]
    hit = torch.arange(count, device=indices.device).reshape(shape) == index
    return torch.where(hit, values[1], values[0])


def nonzero(x: Tensor) -> Tensor:
    """ONNX NonZero (13): (rank, count)."""
    return torch.nonzero(x).transpose(0, 1)


def compress(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    """ONNX Compress (11)."""
    x = x.reshape(-1) if axis is None else x
    where = torch.nonzero(condition.reshape(-1)).reshape(-1)
    return x.index_select(0 if axis is None else axis, where.to(x.device))


def reverse_sequence(x: Tensor, lengths: Tensor, time_axis: int, batch_axis: int) -> Tensor:
    """ONNX ReverseSequence (10): the first ``lengths[b]`` steps of sample b backwards."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device).unsqueeze(0)
    ends = lengths.to(x.device).unsqueeze(1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    index = index.reshape(*index.shape, *[1] * (moved.dim() - 2)).expand_as(moved)
    return moved.gather(1, index).movedim((0, 1), (batch_axis, time_axis))
