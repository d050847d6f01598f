"""Operators that move entries and compute none."""

from __future__ import annotations

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, Outputs, one, operator


@operator("Reshape")
@one
def _reshape(call: Invocation) -> Array:
    x, wanted = call[0], call.ints(1, "shape") or []
    if not call.attrs.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Transpose")
@one
def _transpose(call: Invocation) -> Array:
    return call[0].transpose(call.attrs.get("perm"))


@operator("Flatten")
@one
def _flatten(call: Invocation) -> Array:
    x, axis = call[0], int(call.attrs.get("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


@operator("Squeeze")
@one
def _squeeze(call: Invocation) -> Array:
    axes = call.ints(1, "axes")
    return np.squeeze(call[0], None if axes is None else tuple(axes))


@operator("Unsqueeze")
@one
def _unsqueeze(call: Invocation) -> Array:
    return np.expand_dims(call[0], tuple(call.ints(1, "axes") or ()))


@operator("Concat")
@one
def _concat(call: Invocation) -> Array:
    return np.concatenate([a for a in call.inputs if a is not None], int(call.attrs["axis"]))


@operator("Split")
def _split(call: Invocation) -> Outputs:
    x, axis = call[0], int(call.attrs.get("axis", 0))
    sizes = call.ints(1, "split")
    if sizes is None:
        parts, total = int(call.attrs.get("num_outputs", len(call.wanted))), x.shape[axis]
        each = -(-total // parts)
        sizes = [each] * (parts - 1) + [total - each * (parts - 1)]
    return np.split(x, np.cumsum(sizes)[:-1].tolist(), axis)


@operator("Slice")
@one
def _slice(call: Invocation) -> Array:
    x = call[0]
    starts, ends = call.ints(1, "starts") or [], call.ints(2, "ends") or []
    axes = call.ints(3, "axes") or list(range(len(starts)))
    steps = call.ints(4) or [1] * len(starts)
    at = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step < 0:  # an end before the first entry means all of them
            stop = None if end < -size else end
            at[axis] = slice(min(start, size - 1), stop, step)
        else:
            at[axis] = slice(start, end, step)
    return x[tuple(at)]


@operator("Expand")
@one
def _expand(call: Invocation) -> Array:
    x = call[0]
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(call.ints(1) or ())))


@operator("Tile")
@one
def _tile(call: Invocation) -> Array:
    return np.tile(call[0], call.ints(1) or [])


_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@operator("Pad")
@one
def _pad(call: Invocation) -> Array:
    x, flat = call[0], call.ints(1, "pads") or []
    axes = call.ints(3) or list(range(x.ndim))
    pairs = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        pairs[axis] = (flat[i], flat[i + len(axes)])
    cut = tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pairs, x.shape, strict=True))
    grown = [(max(a, 0), max(b, 0)) for a, b in pairs]
    mode = _MODES[call.attrs.get("mode", "constant")]
    if mode != "constant":
        return np.pad(x[cut], grown, mode=mode)  # type: ignore[call-overload,no-any-return]
    value = call.get(2)
    fill = call.attrs.get("value", 0.0) if value is None else value.reshape(-1)[0]
    return np.pad(x[cut], grown, constant_values=fill)


@operator("DepthToSpace")
@one
def _depth_to_space(call: Invocation) -> Array:
    x, b = call[0], int(call.attrs["blocksize"])
    n, c, h, w = x.shape
    if call.attrs.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
@one
def _space_to_depth(call: Invocation) -> Array:
    x, b = call[0], int(call.attrs["blocksize"])
    n, c, h, w = x.shape
    crd = call.attrs.get("mode", "DCR") == "CRD"
    order = (0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4)
    y = x.reshape(n, c, h // b, b, w // b, b).transpose(order)
    return y.reshape(n, c * b * b, h // b, w // b)


@operator("Shape")
@one
def _shape(call: Invocation) -> Array:
    rank = call[0].ndim
    start, end = int(call.attrs.get("start", 0)), int(call.attrs.get("end", rank))
    return np.array(call[0].shape[start:end], np.int64)


@operator("Size")
@one
def _size(call: Invocation) -> Array:
    return np.array(call[0].size, np.int64)


@operator("Constant")
@one
def _constant(call: Invocation) -> Array:
    for name, kind in _CONSTANTS.items():
        if name in call.attrs:
            return np.asarray(call.attrs[name], kind)
    raise call.refuse("such a constant")


_CONSTANTS = {"value": None, "value_float": np.float32, "value_floats": np.float32,
              "value_int": np.int64, "value_ints": np.int64}  # fmt: skip


@operator("ConstantOfShape")
@one
def _constant_of_shape(call: Invocation) -> Array:
    value = np.asarray(call.attrs.get("value", np.zeros(1, np.float32)))
    return np.full(call.ints(0) or (), value.reshape(-1)[0], value.dtype)


@operator("Range")
@one
def _range(call: Invocation) -> Array:
    start, stop, step = (call[i].reshape(-1)[0] for i in range(3))
    return np.arange(start, stop, step, dtype=call[0].dtype)


@operator("EyeLike")
@one
def _eye(call: Invocation) -> Array:
    return np.eye(call[0].shape[0], call[0].shape[1], k=int(call.attrs.get("k", 0)))


@operator("Trilu")
@one
def _trilu(call: Invocation) -> Array:
    k = call.get(1)
    cut = np.triu if call.attrs.get("upper", 1) else np.tril
    return cut(call[0], 0 if k is None else int(k))


@operator("ReverseSequence")
@one
def _reverse(call: Invocation) -> Array:
    x, lengths = call[0], call.ints(1) or []
    time, batch = int(call.attrs.get("time_axis", 0)), int(call.attrs.get("batch_axis", 1))
    y = np.moveaxis(x, (batch, time), (0, 1)).copy()
    for row, length in zip(y, lengths, strict=True):
        row[:length] = row[:length][::-1].copy()
    return np.moveaxis(y, (0, 1), (batch, time))
