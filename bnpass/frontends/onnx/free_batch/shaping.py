"""How the batch travels: operators that move elements."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from bnpass.frontends.onnx.free_batch import sizes as batch_sizes
from bnpass.frontends.onnx.free_batch.rules import (
    Batch,
    BatchedSizes,
    Repeat,
    State,
    Times,
    View,
    rule,
)


@rule("Transpose")
def transpose(view: View) -> Sequence[State]:
    """The axis moves."""
    batch, rank = view.batch(), len(view.dims(0))
    perm = list(view.attr("perm", range(rank)[::-1]))
    return [Batch(perm.index(batch.axis), batch.factor)]


@rule("Flatten")
def flatten(view: View) -> Sequence[State]:
    """The batch in front stays in front."""
    batch, dims = view.batch(), view.dims(0)
    axis = view.attr("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    if batch.axis != 0 or axis == 0:
        view.refuse("it merges the batch with other axes")
    inner = dims[1:axis]
    if not all(isinstance(d, int) for d in inner):
        view.refuse("it merges the batch with a free axis")
    return [Batch(0, batch.factor * prod(int(d or 0) for d in inner))]


@rule("Squeeze")
def squeeze(view: View) -> Sequence[State]:
    """Not the batch itself."""
    batch, dims = view.batch(), view.dims(0)
    axes = view.attr_or_ints("axes", 1)
    if axes is None:
        if view.size * batch.factor == 1 or None in dims:
            view.refuse("without axes it removes a batch of 1")
        axes = [i for i, d in enumerate(dims) if d == 1]
    axes = [a % len(dims) for a in axes]
    if batch.axis in axes:
        view.refuse("it removes the batch axis")
    return [Batch(batch.axis - sum(a < batch.axis for a in axes), batch.factor)]


@rule("Unsqueeze")
def unsqueeze(view: View) -> Sequence[State]:
    """New axes in front push the batch back."""
    batch, axes = view.batch(), view.attr_or_ints("axes", 1) or []
    rank = len(view.dims(0)) + len(axes)
    old = [a for a in range(rank) if a not in {x % rank for x in axes}]
    return [Batch(old[batch.axis], batch.factor)]


@rule("Concat")
def concat(view: View) -> Sequence[State]:
    """Along another axis; a constant made for one sample (a class token) is repeated."""
    rank = len(view.out_dims())
    states = [view.state(i) for i in range(len(view.node.input))]
    found = {s for s in states if s is not None}
    if len(found) != 1 or not isinstance(states[like := states.index(min(found, key=str))], Batch):
        view.refuse("its inputs carry the batch on different axes")
    batch = view.batch(like)
    if view.attr("axis", 1) % rank == batch.axis:
        view.refuse("it joins along the batch")
    for index, state in enumerate(states):
        if state is None:
            if view.size * batch.factor != 1 or view.dims(index)[batch.axis] != 1:
                view.refuse(f"{view.node.input[index]!r} has no batch while another input has")
            view.repeated[index] = Repeat(batch.axis, rank, like)
    return [batch]


@rule("Split")
def split(view: View) -> Sequence[State]:
    """Along another axis."""
    batch = view.batch()
    if view.attr("axis", 0) % len(view.dims(0)) == batch.axis:
        view.refuse("it splits the batch")
    return [batch] * len(view.node.output)


@rule("Slice")
def slice_(view: View) -> Sequence[State]:
    """Along other axes, or all of the batch."""
    batch, rank = view.batch(), len(view.dims(0))
    axes = view.attr_or_ints("axes", 3)
    starts, ends = view.attr_or_ints("starts", 1) or [], view.attr_or_ints("ends", 2) or []
    steps = view.attr_or_ints("steps", 4) or [1] * len(starts)
    where = [a % rank for a in axes] if axes is not None else list(range(len(starts)))
    for axis, start, end, step in zip(where, starts, ends, steps, strict=True):
        if axis == batch.axis and (start != 0 or end < 2**31 - 1 or step != 1):
            view.refuse("it takes a part of the batch")
    return [batch]


@rule("Gather")
def gather(view: View) -> Sequence[State]:
    """Fixed positions of the data, or a batch of positions in a table."""
    data, index = view.state(0), view.state(1)
    axis = view.attr("axis", 0) % len(view.dims(0))
    if isinstance(index, Batch) and data is None:
        return [Batch(axis + index.axis, index.factor)]
    if index is not None or not isinstance(data, Batch) or axis == data.axis:
        view.refuse("it picks samples of the batch")
    shift = len(view.dims(1)) - 1 if axis < data.axis else 0
    return [Batch(data.axis + shift, data.factor)]


@rule("GatherElements")
def gather_elements(view: View) -> Sequence[State]:
    """Sample by sample."""
    batch = view.batch()
    if view.state(1) != batch or view.attr("axis", 0) % len(view.dims(0)) == batch.axis:
        view.refuse("it picks samples of the batch")
    return [batch]


@rule("Pad")
def pad(view: View) -> Sequence[State]:
    """Not along the batch."""
    batch, rank = view.batch(), len(view.dims(0))
    pads = view.attr_or_ints("pads", 1) or []
    axes = [a % rank for a in view.known_ints(3, "axes")] if view.has(3) else list(range(rank))
    if batch.axis in axes:
        at = axes.index(batch.axis)
        if pads[at] or pads[at + len(axes)]:
            view.refuse("it pads the batch")
    return [batch]


@rule("Tile")
def tile(view: View) -> Sequence[State]:
    """Not along the batch."""
    batch = view.batch()
    if view.known_ints(1, "repeats")[batch.axis] != 1:
        view.refuse("it repeats the batch")
    return [batch]


@rule("Upsample", "Resize")
def resize(view: View) -> Sequence[State]:
    """Scales of 1 along the batch; sizes only where axes name the others or they are computed."""
    batch = view.batch()
    if batch.axis != 0:
        view.refuse(f"the batch is on axis {batch.axis}, not 0")
    axes = view.attr("axes")
    if axes is not None and 0 not in axes:
        return [batch]
    if view.has(3):
        sizes = batch_sizes.entries_of(view, 3)
        if sizes[0] == view.size * batch.factor and axes is None:
            _as_scales(view, [int(s) for s in view.known_ints(3, "sizes")])
        elif sizes[0] != Times(batch.factor):
            view.refuse("its sizes spell out the batch size")
    return [batch]


def _as_scales(view: View, sizes: Sequence[int]) -> None:
    """The same sizes as scales, which do not name the batch: where these give the same."""
    dims = view.dims(0)[1:]
    known = [d for d in dims if isinstance(d, int)]
    scales = [np.float32(s) / np.float32(d) for s, d in zip(sizes[1:], known, strict=False)]
    exact = all(
        int(np.float32(d) * r) == s for d, r, s in zip(known, scales, sizes[1:], strict=False)
    )
    stretch = view.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
    cropped = view.attr("coordinate_transformation_mode") == "tf_crop_and_resize"
    if len(known) != len(dims) or not exact or not stretch or cropped:
        view.refuse("its sizes spell out the batch size")
    view.replaced[2] = [1.0, *(float(r) for r in scales)]
    view.dropped.add(3)


@rule("Expand")
def expand(view: View) -> Sequence[State]:
    """A 1 in the shape leaves the batch as it is; computed shapes may hold the batch size."""
    shape = batch_sizes.entries_of(view, 1)
    data = view.state(0)
    if not isinstance(data, Batch):
        return [_made(view, shape)]
    rank = max(len(view.dims(0)), len(shape))
    axis = data.axis - len(view.dims(0)) + rank
    at = axis - rank + len(shape)
    wanted = shape[at] if at >= 0 else 1
    if any(isinstance(entry, Times) for i, entry in enumerate(shape) if i != at):
        view.refuse("its shape spells out the batch size on another axis")
    if wanted == view.size * data.factor and view.ints(1) is not None:
        view.replaced[1] = [*view.known_ints(1, "shape")[:at], 1, *view.known_ints(1, "")[at + 1 :]]
    elif wanted not in (1, Times(data.factor)):
        view.refuse("its shape spells out the batch size")
    return [Batch(axis, data.factor)]


@rule("ConstantOfShape")
def constant_of_shape(view: View) -> Sequence[State]:
    """The batch is where the shape holds its size."""
    return [_made(view, batch_sizes.entries_of(view, 0))]


def _made(view: View, shape: Sequence[batch_sizes.Entry]) -> State:
    found = [Batch(i, e.factor) for i, e in enumerate(shape) if isinstance(e, Times)]
    if len(found) > 1:
        view.refuse("the batch size occurs twice in its shape")
    return found[0] if found else None


@rule("Reshape")
def reshape(view: View) -> Sequence[State]:
    """The batch in front stays in front, whatever is merged into or split off behind it.

    Entries are in row-major order, so N samples of M entries each stay N blocks of M entries as
    long as axis 0 of the result has a multiple of N entries. Further back the axes in front of the
    batch must stay together.
    """
    shape = view.state(1)
    if isinstance(shape, BatchedSizes):
        return [_computed(view, shape)]
    batch, wanted = view.batch(), view.known_ints(1, "its shape")
    if batch.axis != 0:
        return [_behind(view, batch, wanted)]
    dims = view.dims(0)
    factor = _front(view, batch, wanted)
    rest = wanted[1:]
    if wanted[0] == -1 or (wanted[0] == 0 and not view.attr("allowzero", 0)):
        return [Batch(0, factor)]
    if -1 not in rest:
        view.replaced[1] = [-1, *rest]
    elif factor == batch.factor and not view.attr("allowzero", 0):
        view.replaced[1] = [0, *rest]
    else:
        known = view.out_dims()[1:]
        if not all(isinstance(d, int) for d in known):
            view.refuse(f"its shape {wanted} spells out the batch size")
        view.replaced[1] = [-1, *(int(d) for d in known if isinstance(d, int))]
    _check_zeros(view, dims, rest)
    return [Batch(0, factor)]


def _check_zeros(view: View, dims: Sequence[object], rest: Sequence[int]) -> None:
    if view.attr("allowzero", 0) and 0 in rest:
        view.refuse("an empty shape")
    assert len(dims) >= 1


def _front(view: View, batch: Batch, wanted: Sequence[int]) -> int:
    """How many entries of axis 0 of the result belong to one sample."""
    if not wanted:
        view.refuse("it makes a scalar")
    if wanted[0] == 0 and not view.attr("allowzero", 0):
        return batch.factor
    first = wanted[0] if wanted[0] > 0 else view.out_dims()[0]
    if not isinstance(first, int) or first % view.size:
        view.refuse(f"its shape {list(wanted)} does not keep the batch in front")
    return first // view.size


def _behind(view: View, batch: Batch, wanted: Sequence[int]) -> State:
    dims, result = view.dims(0), view.out_dims()
    if not all(isinstance(d, int) for d in (*dims[: batch.axis], *result)):
        view.refuse("it reshapes free axes in front of the batch")
    front = prod(int(d) for d in dims[: batch.axis] if isinstance(d, int))
    sizes = [int(d) for d in result if isinstance(d, int)]
    for axis in range(len(sizes)):
        if prod(sizes[:axis]) == front and sizes[axis] == view.size * batch.factor:
            break
    else:
        view.refuse("it merges the batch with the axes around it")
    others = [w for i, w in enumerate(wanted) if i != axis]
    if wanted[axis] != -1:
        fixed = [s for i, s in enumerate(sizes) if i != axis] if -1 in others else others
        view.replaced[1] = [*fixed[:axis], -1, *fixed[axis:]]
    return Batch(axis, batch.factor)


def _computed(view: View, shape: BatchedSizes) -> State:
    batch = view.batch()
    if batch.axis == 0 and shape.entries and isinstance(shape.entries[0], Times):
        return Batch(0, shape.entries[0].factor)
    if batch.axis == 0 and shape.entries and shape.entries[0] in (-1, 0):
        first = view.out_dims()[0]
        if isinstance(first, int) and first % view.size == 0:
            return Batch(0, first // view.size)
    found = [i for i, e in enumerate(shape.entries) if e == Times(batch.factor)]
    dims, result = view.dims(0), view.out_dims()
    front = prod_of(dims[: batch.axis])
    kept = [a for a in found if front is not None and prod_of(result[:a]) == front]
    if not kept:
        view.refuse("its computed shape does not show where the batch goes")
    return Batch(kept[0], batch.factor)


def prod_of(dims: Sequence[object]) -> int | None:
    """The product of dimensions if all are known."""
    known = [d for d in dims if isinstance(d, int)]
    return prod(known) if len(known) == len(dims) else None


batch_sizes.install()
