"""Random structure: operators that move, join, cut, pool and pad values."""

from __future__ import annotations

from math import prod

import numpy as np

from tests.fuzz.builder import LIMIT, Builder, Value

# --- two and more values


def _partner(b: Builder, v: Value) -> Value | None:
    """Another value of the same shape: one that is there, a new branch, or the value itself."""
    twins = [u for u in b.values if u.shape == v.shape and u.name != v.name
             and (u.name in b.batches) == (v.name in b.batches)]  # fmt: skip
    if twins and b.chance(0.7):
        return b.pick(twins)
    if v.rank == 4 and v.shape[1] and b.chance(0.6):
        weight = b.weight(v.shape[1], v.shape[1], 1, 1, fan=v.shape[1])
        return b.op("Conv", v, weight, shape=v.shape)
    if v.rank >= 2 and b.chance(0.5):
        weight = b.weight(v.shape[-1], v.shape[-1], fan=v.shape[-1])
        return b.op("MatMul", v, weight, shape=v.shape)
    return v if b.chance(0.5) else b.op("Identity", v)


def join(b: Builder, v: Value) -> Value | None:
    other = _partner(b, v)
    if other is None:
        return None
    kind = b.pick(["Add", "Add", "Sub", "Sum", "Mean", "Max", "Min", "Mul"])
    names = [v.name, other.name] if b.chance(0.5) else [other.name, v.name]
    if kind in ("Sum", "Mean", "Max") and b.chance(0.3):
        names.append(b.pick(names))
    (name,) = b.node(kind, names)
    return b.give(name, v.shape, v)


def gate(b: Builder, v: Value) -> Value | None:
    """Squeeze and excite, or a division by something that is never small."""
    if v.rank != 4:
        return None
    pooled = b.op("GlobalAveragePool", v, shape=(*v.shape[:2], 1, 1))
    weight = b.weight(v.shape[1], v.shape[1], 1, 1, fan=v.shape[1])
    layer = b.op("Conv", pooled, weight, shape=pooled.shape)
    bounded = b.op("Sigmoid", b.op("Tanh", layer))
    (name,) = b.node(b.pick(["Mul", "Div"]), [v.name, bounded.name])
    return b.give(name, v.shape, v)


def broadcast_add(b: Builder, v: Value) -> Value | None:
    """An operand of one channel, or of one pixel."""
    if v.rank != 4:
        return None
    out = b.pick([1, v.shape[1]])
    other = b.op("Conv", v, b.weight(out, v.shape[1], 1, 1, fan=v.shape[1]),
                 shape=(v.shape[0], out, *v.shape[2:]))  # fmt: skip
    if b.chance(0.5):
        other = b.op("GlobalAveragePool", other, shape=(v.shape[0], out, 1, 1))
    (name,) = b.node(b.pick(["Add", "Sub", "Mul"]), [v.name, other.name])
    return b.give(name, v.shape, v)


def concat(b: Builder, v: Value) -> Value | None:
    if v.rank < 2:
        return None
    axis = b.pick([1, 1, b.between(1, v.rank - 1)])
    other = _partner(b, v)
    if other is None or prod(v.shape) * 2 > LIMIT:
        return None
    shape = list(v.shape)
    shape[axis] *= 2
    (name,) = b.node("Concat", [v.name, other.name], axis=b.pick([axis, axis - v.rank]))
    return b.give(name, tuple(shape), v)


# --- one value


def transpose(b: Builder, v: Value) -> Value | None:
    perm = [int(p) for p in b.rng.permutation(v.rank)]
    if v.name in b.batches:
        perm = [0, *(p for p in perm if p)]
    return b.op("Transpose", v, shape=tuple(v.shape[p] for p in perm), perm=perm)


def reshape(b: Builder, v: Value) -> Value | None:
    if v.rank < 2:
        return None
    dims = list(v.shape)
    axis = b.between(1, v.rank - 1)
    if b.chance(0.5) and axis + 1 < v.rank:
        dims[axis : axis + 2] = [dims[axis] * dims[axis + 1]]
    else:
        parts = [d for d in (1, 2, 3, 4) if dims[axis] % d == 0]
        first = b.pick(parts)
        dims[axis : axis + 1] = [first, dims[axis] // first]
    if len(dims) > 5:
        return None
    target = dims[:]
    if v.name in b.batches:
        target[0] = 0
    if b.chance(0.3):
        target[b.between(1, len(dims) - 1)] = -1
    return b.op("Reshape", v, b.ints(*target), shape=tuple(dims))


def flatten(b: Builder, v: Value) -> Value | None:
    if v.rank < 2:
        return None
    return b.op("Flatten", v, shape=(v.shape[0], prod(v.shape[1:])))


def squeeze(b: Builder, v: Value) -> Value | None:
    ones = [i for i, n in enumerate(v.shape) if n == 1 and i]
    if ones and v.rank > 2 and b.chance(0.6):
        axis = b.pick(ones)
        shape = v.shape[:axis] + v.shape[axis + 1 :]
        return b.op("Squeeze", v, b.ints(b.pick([axis, axis - v.rank])), shape=shape)
    if v.rank > 4:
        return None
    axis = b.between(1, v.rank)
    shape = (*v.shape[:axis], 1, *v.shape[axis:])
    return b.op("Unsqueeze", v, b.ints(b.pick([axis, axis - v.rank - 1])), shape=shape)


def depth(b: Builder, v: Value) -> Value | None:
    if v.rank != 4:
        return None
    n, c, h, w = v.shape
    if c % 4 == 0:
        mode = b.pick(["DCR", "CRD"])
        return b.op("DepthToSpace", v, shape=(n, c // 4, h * 2, w * 2), blocksize=2, mode=mode)
    if h % 2 == 0 and w % 2 == 0:
        return b.op("SpaceToDepth", v, shape=(n, c * 4, h // 2, w // 2), blocksize=2)
    return None


def tile(b: Builder, v: Value) -> Value | None:
    axis = b.between(1, v.rank - 1) if v.rank > 1 else 0
    if prod(v.shape) * 2 > LIMIT or not axis:
        return None
    shape = list(v.shape)
    if shape[axis] == 1 and b.chance(0.5):
        shape[axis] = 3
        target = [1] * v.rank
        target[axis] = 3
        return b.op("Expand", v, b.ints(*target), shape=tuple(shape))
    repeats = [1] * v.rank
    repeats[axis] = 2
    shape[axis] *= 2
    return b.op("Tile", v, b.ints(*repeats), shape=tuple(shape))


def split(b: Builder, v: Value) -> Value | None:
    if v.rank < 2:
        return None
    axis = b.pick([1, 1, b.between(1, v.rank - 1)])
    n = v.shape[axis]
    if n < 2:
        return None
    first = b.between(1, n - 1)
    names = b.node("Split", [v.name, b.ints(first, n - first)], 2, axis=axis)
    made = []
    for name, size in zip(names, (first, n - first), strict=True):
        made.append(b.give(name, (*v.shape[:axis], size, *v.shape[axis + 1 :]), v))
    return b.pick(made)


def cut(b: Builder, v: Value) -> Value | None:
    if v.rank < 2:
        return None
    axis = b.pick([1, 1, b.between(1, v.rank - 1)])
    n = v.shape[axis]
    begin, step = b.between(0, n - 1), b.pick([1, 1, 2, -1])
    end = b.between(begin + 1, n) if step > 0 else -n - 1
    index = np.arange(n)[begin : end if step > 0 else None : step]
    shape = (*v.shape[:axis], len(index), *v.shape[axis + 1 :])
    arguments = [b.ints(begin - b.pick([0, n])), b.ints(end), b.ints(axis), b.ints(step)]
    return b.op("Slice", v, *arguments, shape=shape)


def gather(b: Builder, v: Value) -> Value | None:
    if v.rank < 2:
        return None
    axis = b.pick([1, 1, b.between(1, v.rank - 1)])
    n = v.shape[axis]
    index = [b.between(-n, n - 1) for _ in range(b.between(1, n))]
    shape = (*v.shape[:axis], len(index), *v.shape[axis + 1 :])
    return b.op("Gather", v, b.ints(*index), shape=shape, axis=axis)


def pool(b: Builder, v: Value) -> Value | None:
    if v.rank not in (3, 4):
        return None
    kind = b.pick(["AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"])
    if kind.startswith("Global"):
        return b.op(kind, v, shape=(*v.shape[:2], *(1,) * (v.rank - 2)))
    if min(v.shape[2:]) < 2:
        return None
    pad, stride = b.pick([0, 0, 1]), b.pick([1, 2])
    spatial = v.rank - 2
    attributes = {"kernel_shape": [2] * spatial, "strides": [stride] * spatial,
                  "pads": [pad] * 2 * spatial}  # fmt: skip
    if kind == "AveragePool" and b.chance(0.4):
        attributes["count_include_pad"] = 1
    sizes = [(n + 2 * pad - 2) // stride + 1 for n in v.shape[2:]]
    return b.op(kind, v, shape=(*v.shape[:2], *sizes), **attributes)


def reduce(b: Builder, v: Value) -> Value | None:
    if v.rank < 3:
        return None
    axes = sorted({b.between(1, v.rank - 1) for _ in range(b.between(1, 2))})
    keep = b.chance(0.5)
    shape = [1 if i in axes else n for i, n in enumerate(v.shape) if keep or i not in axes]
    kind = b.pick(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
    return b.op(kind, v, b.ints(*axes), shape=tuple(shape), keepdims=int(keep))


def resize(b: Builder, v: Value) -> Value | None:
    if v.rank != 4 or prod(v.shape) * 4 > LIMIT:
        return None
    scales = b.constant("s", np.array([1.0, 1.0, 2.0, 2.0]))
    if b.dtype != np.float32:  # scales are float32 whatever the data is
        return None
    shape = (*v.shape[:2], v.shape[2] * 2, v.shape[3] * 2)
    return b.op("Resize", v, "", scales, shape=shape, mode=b.pick(["nearest", "linear"]))


def pad(b: Builder, v: Value) -> Value | None:
    if v.rank < 2 or prod(v.shape) * 3 > LIMIT:
        return None
    axis = b.pick([v.rank - 1, b.between(1, v.rank - 1)])
    n = v.shape[axis]
    mode = b.pick(["constant", "constant", "constant", "edge", "reflect"])
    before, after = b.between(0, 1), b.between(0, 1)
    if mode == "reflect" and n < 2:
        return None
    pads = [0] * 2 * v.rank
    pads[axis], pads[axis + v.rank] = before, after
    shape = (*v.shape[:axis], n + before + after, *v.shape[axis + 1 :])
    fill = b.constant("f", np.array(b.pick([0.0, 1.5]))) if b.chance(0.5) else ""
    more = [b.ints(*pads), fill if mode == "constant" else ""]
    return b.op("Pad", v, *more, shape=shape, mode=mode)
