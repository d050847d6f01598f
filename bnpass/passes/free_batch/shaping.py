"""How the batch travels: what moves entries about, picks them or makes them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from bnpass.ir.extents import Extent, Product
from bnpass.passes.free_batch.node import Batch, BatchNode, Repeat, State, holds_batch, rule


@rule("Transpose")
def transpose(node: BatchNode) -> Sequence[State]:
    """The axis moves."""
    batch, rank = node.batch(), len(node.dims(0))
    perm = list(node.attr("perm", range(rank)[::-1]))
    return [Batch(perm.index(batch.axis), batch.factor)]


@rule("Flatten")
def flatten(node: BatchNode) -> Sequence[State]:
    """The batch in front stays in front."""
    batch, dims = node.batch(), node.dims(0)
    axis = node.attr("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    if batch.axis != 0 or axis == 0:
        node.refuse("it merges the batch with other axes")
    inner = dims[1:axis]
    if not all(isinstance(d, int) for d in inner):
        node.refuse("it merges the batch with a free axis")
    return [Batch(0, batch.factor * prod(int(d or 0) for d in inner))]


@rule("Squeeze")
def squeeze(node: BatchNode) -> Sequence[State]:
    """Not the batch itself."""
    batch, dims = node.batch(), node.dims(0)
    axes = node.attr_or_ints("axes", 1)
    if axes is None:
        if node.size * batch.factor == 1 or None in dims:
            node.refuse("without axes it removes a batch of 1")
        axes = [i for i, d in enumerate(dims) if d == 1]
    axes = [a % len(dims) for a in axes]
    if batch.axis in axes:
        node.refuse("it removes the batch axis")
    return [Batch(batch.axis - sum(a < batch.axis for a in axes), batch.factor)]


@rule("Unsqueeze")
def unsqueeze(node: BatchNode) -> Sequence[State]:
    """New axes in front push the batch back."""
    batch, axes = node.batch(), node.attr_or_ints("axes", 1) or []
    rank = len(node.dims(0)) + len(axes)
    old = [a for a in range(rank) if a not in {x % rank for x in axes}]
    return [Batch(old[batch.axis], batch.factor)]


@rule("Concat")
def concat(node: BatchNode) -> Sequence[State]:
    """Along another axis; a constant made for one sample (a class token) is repeated."""
    rank = len(node.out_dims())
    states = [node.state(i) for i in range(len(node.op.inputs))]
    found = {s for s in states if s is not None}
    if len(found) != 1:
        node.refuse("its inputs carry the batch on different axes")
    (batch,) = found
    like = states.index(batch)
    if node.attr("axis", 1) % rank == batch.axis:
        node.refuse("it joins along the batch")
    for index, state in enumerate(states):
        if state is None:
            if node.size * batch.factor != 1 or node.dims(index)[batch.axis] != 1:
                node.refuse(f"{node.op.inputs[index]!r} has no batch while another input has")
            node.repeated[index] = Repeat(batch.axis, rank, like)
    return [batch]


@rule("Split")
def split(node: BatchNode) -> Sequence[State]:
    """Along another axis."""
    batch = node.batch()
    if node.attr("axis", 0) % len(node.dims(0)) == batch.axis:
        node.refuse("it splits the batch")
    if node.state(1) is not None:
        node.refuse(f"the sizes {node.op.inputs[1]!r} would be as many as there are samples")
    return [batch] * len(node.op.outputs)


@rule("Slice")
def slice_(node: BatchNode) -> Sequence[State]:
    """Along other axes, or all of the batch."""
    batch, rank = node.batch(), len(node.dims(0))
    axes = node.attr_or_ints("axes", 3)
    starts, ends = node.attr_or_ints("starts", 1) or [], node.attr_or_ints("ends", 2) or []
    steps = node.attr_or_ints("steps", 4) or [1] * len(starts)
    where = [a % rank for a in axes] if axes is not None else list(range(len(starts)))
    for axis, start, end, step in zip(where, starts, ends, steps, strict=True):
        if axis == batch.axis and (start != 0 or end < 2**31 - 1 or step != 1):
            node.refuse("it takes a part of the batch")
    return [batch]


@rule("Gather")
def gather(node: BatchNode) -> Sequence[State]:
    """Fixed positions of the data, or a batch of positions in a table."""
    data, index = node.state(0), node.state(1)
    axis = node.attr("axis", 0) % len(node.dims(0))
    if isinstance(index, Batch) and data is None:
        return [Batch(axis + index.axis, index.factor)]
    if index is not None or not isinstance(data, Batch) or axis == data.axis:
        node.refuse("it picks samples of the batch")
    shift = len(node.dims(1)) - 1 if axis < data.axis else 0
    return [Batch(data.axis + shift, data.factor)]


@rule("GatherElements")
def gather_elements(node: BatchNode) -> Sequence[State]:
    """Sample by sample."""
    batch = node.batch()
    if node.state(1) != batch or node.attr("axis", 0) % len(node.dims(0)) == batch.axis:
        node.refuse("it picks samples of the batch")
    return [batch]


@rule("Pad")
def pad(node: BatchNode) -> Sequence[State]:
    """Not along the batch."""
    batch, rank = node.batch(), len(node.dims(0))
    pads = node.attr_or_ints("pads", 1) or []
    axes = [a % rank for a in node.known_ints(3, "axes")] if node.has(3) else list(range(rank))
    if batch.axis in axes:
        at = axes.index(batch.axis)
        if pads[at] or pads[at + len(axes)]:
            node.refuse("it pads the batch")
    return [batch]


@rule("Tile")
def tile(node: BatchNode) -> Sequence[State]:
    """Not along the batch."""
    batch = node.batch()
    if node.known_ints(1, "repeats")[batch.axis] != 1:
        node.refuse("it repeats the batch")
    return [batch]


@rule("Upsample", "Resize")
def resize(node: BatchNode) -> Sequence[State]:
    """Scales of 1 along the batch; sizes only where axes name the others or they are computed."""
    batch = node.batch()
    if batch.axis != 0:
        node.refuse(f"the batch is on axis {batch.axis}, not 0")
    axes = node.attr("axes")
    if axes is not None and 0 not in axes:
        return [batch]
    scales = node.graph.constant(node.op.input(2))
    if scales is not None and scales.small.size and scales.small.reshape(-1)[0] != 1:
        node.refuse("it resizes the batch")
    if node.has(3):
        sizes = node.sizes(3)
        if sizes[0] == node.size * batch.factor and axes is None:
            _as_scales(node, [int(s) for s in node.known_ints(3, "sizes")])
        elif sizes[0] != batch.size:
            node.refuse("its sizes spell out the batch size")
    return [batch]


def _as_scales(node: BatchNode, sizes: Sequence[int]) -> None:
    """The same sizes as scales, which do not name the batch: where these give the same."""
    dims = node.dims(0)[1:]
    known = [d for d in dims if isinstance(d, int)]
    scales = [np.float32(s) / np.float32(d) for s, d in zip(sizes[1:], known, strict=False)]
    exact = all(
        int(np.float32(d) * r) == s for d, r, s in zip(known, scales, sizes[1:], strict=False)
    )
    stretch = node.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
    cropped = node.attr("coordinate_transformation_mode") == "tf_crop_and_resize"
    if len(known) != len(dims) or not exact or not stretch or cropped:
        node.refuse("its sizes spell out the batch size")
    node.replaced[2] = [1.0, *(float(r) for r in scales)]
    node.dropped.add(3)


@rule("Expand")
def expand(node: BatchNode) -> Sequence[State]:
    """A 1 in the shape leaves the batch as it is; computed shapes may hold the batch size."""
    shape = node.sizes(1)
    data = node.state(0)
    if data is None:
        return [_expanded(node, shape)]
    rank = max(len(node.dims(0)), len(shape))
    axis = data.axis - len(node.dims(0)) + rank
    at = axis - rank + len(shape)
    wanted = shape[at] if at >= 0 else 1
    if any(holds_batch(entry) for i, entry in enumerate(shape) if i != at):
        node.refuse("its shape spells out the batch size on another axis")
    if wanted == node.size * data.factor and node.ints(1) is not None:
        node.replaced[1] = [*node.known_ints(1, "shape")[:at], 1, *node.known_ints(1, "")[at + 1 :]]
    elif wanted not in (1, data.size):
        node.refuse("its shape spells out the batch size")
    return [Batch(axis, data.factor)]


@rule("ConstantOfShape")
def constant_of_shape(node: BatchNode) -> Sequence[State]:
    """The batch is where the shape holds its size."""
    return [_made(node, node.sizes(0))]


def _expanded(node: BatchNode, shape: Sequence[Extent]) -> State:
    """A constant has 1 along the batch; one number everywhere (a zero state) needs no size."""
    made, dims, name = _made(node, shape), node.dims(0), node.op.inputs[0]
    if made is None:
        return None
    made = Batch(made.axis + max(len(dims) - len(shape), 0), made.factor)
    axis = made.axis - len(node.out_dims()) + len(dims)
    if axis < 0 or dims[axis] == 1:
        return made
    constant = node.graph.constant(name)
    values = None if constant is None or constant.dtype != "float32" else constant.load()
    spelled = all(
        holds_batch(e) or e == d
        for e, d in zip(shape, node.out_dims()[-len(shape) :], strict=True)
    )
    if values is None or not spelled or len(dims) > len(shape) or len(set(values.flat)) != 1:
        node.refuse(f"{name!r} has size {dims[axis]} along the batch")
    node.replaced[0] = [float(values.flat[0])]
    return made


def _made(node: BatchNode, shape: Sequence[Extent]) -> State:
    found = [Batch(i, e.factor) for i, e in enumerate(shape)
             if isinstance(e, Product) and holds_batch(e)]  # fmt: skip
    if len(found) > 1:
        node.refuse("the batch size occurs twice in its shape")
    return found[0] if found else None


@rule("Reshape")
def reshape(node: BatchNode) -> Sequence[State]:
    """The batch in front stays in front, whatever is merged into or split off behind it.

    Entries are in row-major order, so N samples of M entries each stay N blocks of M entries as
    long as axis 0 of the result has a multiple of N entries. Further back the axes in front of the
    batch must stay together.
    """
    if node.known(1) is not None and node.ints(1) is None:
        return [_computed(node, node.sizes(1))]
    batch, wanted = node.batch(), node.known_ints(1, "its shape")
    if batch.axis != 0:
        return [_behind(node, batch, wanted)]
    factor = _front(node, batch, wanted)
    rest = wanted[1:]
    if wanted[0] == -1 or (wanted[0] == 0 and not node.attr("allowzero", 0)):
        return [Batch(0, factor)]
    if -1 not in rest:
        node.replaced[1] = [-1, *rest]
    elif factor == batch.factor and not node.attr("allowzero", 0):
        node.replaced[1] = [0, *rest]
    else:
        known = node.out_dims()[1:]
        if not all(isinstance(d, int) for d in known):
            node.refuse(f"its shape {wanted} spells out the batch size")
        node.replaced[1] = [-1, *(int(d) for d in known if isinstance(d, int))]
    if node.attr("allowzero", 0) and 0 in rest:
        node.refuse("an empty shape")
    return [Batch(0, factor)]


def _front(node: BatchNode, batch: Batch, wanted: Sequence[int]) -> int:
    """How many entries of axis 0 of the result belong to one sample."""
    if not wanted:
        node.refuse("it makes a scalar")
    if wanted[0] == 0 and not node.attr("allowzero", 0):
        return batch.factor
    first = wanted[0] if wanted[0] > 0 else node.out_dims()[0]
    if not isinstance(first, int) or first % node.size:
        node.refuse(f"its shape {list(wanted)} does not keep the batch in front")
    return first // node.size


def _behind(node: BatchNode, batch: Batch, wanted: Sequence[int]) -> State:
    dims, result = node.dims(0), node.out_dims()
    if not all(isinstance(d, int) for d in (*dims[: batch.axis], *result)):
        node.refuse("it reshapes free axes in front of the batch")
    front = prod(int(d) for d in dims[: batch.axis] if isinstance(d, int))
    sizes = [int(d) for d in result if isinstance(d, int)]
    for axis in range(len(sizes)):
        if prod(sizes[:axis]) == front and sizes[axis] == node.size * batch.factor:
            break
    else:
        node.refuse("it merges the batch with the axes around it")
    others = [w for i, w in enumerate(wanted) if i != axis]
    if wanted[axis] != -1:
        fixed = [s for i, s in enumerate(sizes) if i != axis] if -1 in others else others
        node.replaced[1] = [*fixed[:axis], -1, *fixed[axis:]]
    return Batch(axis, batch.factor)


def _computed(node: BatchNode, shape: Sequence[Extent]) -> State:
    batch, first = node.batch(), shape[0] if shape else None
    if batch.axis == 0 and isinstance(first, Product) and holds_batch(first):
        return Batch(0, first.factor)
    if batch.axis == 0 and first in (-1, 0):
        rows = node.out_dims()[0]
        if isinstance(rows, int) and rows % node.size == 0:
            return Batch(0, rows // node.size)
    found = [i for i, e in enumerate(shape) if e == batch.size]
    dims, result = node.dims(0), node.out_dims()
    front = prod_of(dims[: batch.axis])
    kept = [a for a in found if front is not None and prod_of(result[:a]) == front]
    if not kept:
        node.refuse("its computed shape does not show where the batch goes")
    return Batch(kept[0], batch.factor)


def prod_of(dims: Sequence[object]) -> int | None:
    """The product of dimensions if all are known."""
    known = [d for d in dims if isinstance(d, int)]
    return prod(known) if len(known) == len(dims) else None

