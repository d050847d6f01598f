"""Gather, scatter and their kin."""

from __future__ import annotations

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, one, operator


@operator("Gather")
@one
def _gather(call: Invocation) -> Array:
    return np.take(call[0], call[1], int(call.attrs.get("axis", 0)))


@operator("GatherElements")
@one
def _gather_elements(call: Invocation) -> Array:
    x, axis = call[0], int(call.attrs.get("axis", 0))
    index = np.where(call[1] < 0, call[1] + x.shape[axis], call[1])
    return np.asarray(x[_places(index, axis)])


def _places(index: Array, axis: int) -> tuple[Array, ...]:
    """Each entry's own place, but along one axis that which it names."""
    places: list[Array] = list(np.indices(index.shape))
    places[axis] = index
    return tuple(places)


@operator("GatherND")
@one
def _gather_nd(call: Invocation) -> Array:
    x, index, batch = call[0], call[1], int(call.attrs.get("batch_dims", 0))
    if batch == 0:
        return np.asarray(x[tuple(np.moveaxis(index, -1, 0))])
    lead = x.shape[:batch]
    flat = x.reshape(-1, *x.shape[batch:])
    rows = index.reshape(-1, *index.shape[batch:])
    found = [np.asarray(a[tuple(np.moveaxis(i, -1, 0))]) for a, i in zip(flat, rows, strict=True)]
    return np.stack(found).reshape(*lead, *found[0].shape)


_ADD = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(call: Invocation, y: Array, places: tuple[Array, ...], updates: Array) -> Array:
    how = call.attrs.get("reduction", "none")
    if how == "none":
        y[places] = updates
    else:
        _ADD[how].at(y, places, updates)
    return y


@operator("ScatterND")
@one
def _scatter_nd(call: Invocation) -> Array:
    return _scatter(call, call[0].copy(), tuple(np.moveaxis(call[1], -1, 0)), call[2])


@operator("ScatterElements", "Scatter")
@one
def _scatter_elements(call: Invocation) -> Array:
    x, axis = call[0], int(call.attrs.get("axis", 0))
    index = np.where(call[1] < 0, call[1] + x.shape[axis], call[1])
    return _scatter(call, x.copy(), _places(index, axis), call[2])


@operator("OneHot")
@one
def _one_hot(call: Invocation) -> Array:
    index, depth, values = call[0], int(call[1].reshape(-1)[0]), call[2]
    index = index.astype(np.int64)
    hot = np.arange(depth) == np.where(index < 0, index + depth, index)[..., None]
    axis = int(call.attrs.get("axis", -1))
    return np.moveaxis(np.where(hot, values[1], values[0]), -1, axis)


@operator("NonZero")
@one
def _nonzero(call: Invocation) -> Array:
    return np.stack(np.nonzero(call[0])).astype(np.int64)


@operator("Compress")
@one
def _compress(call: Invocation) -> Array:
    axis = call.attrs.get("axis")
    return np.compress(call[1].astype(bool), call[0], None if axis is None else int(axis))
