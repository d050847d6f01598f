"""Random absorbers, maps and nonlinearities."""

from __future__ import annotations

from math import prod

import numpy as np

from tests.fuzz.builder import LIMIT, Builder, Value

# --- layers


def conv(b: Builder, v: Value) -> Value | None:
    if v.rank not in (3, 4, 5):
        return None
    group = b.pick([g for g in (1, 1, 2, v.shape[1]) if v.shape[1] % g == 0])
    out = group * b.between(1, 4)
    kernel = [b.pick([k for k in (1, 2, 3) if k <= n]) for n in v.shape[2:]]
    pads = [b.pick([0, 0, 0, 1]) * (k > 1) for k in kernel] * 2
    strides = [b.pick([1, 1, 2]) for _ in kernel]
    weight = b.weight(out, v.shape[1] // group, *kernel, fan=v.shape[1] // group * prod(kernel))
    bias = b.weight(out) if b.chance(0.6) else ""
    attributes = {"group": group, "strides": strides, "pads": pads}
    sizes = [
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(v.shape[2:], pads, kernel, strides, strict=False)
    ]
    if b.chance(0.15):
        attributes = {"group": group, "strides": strides, "auto_pad": "SAME_UPPER"}
        sizes = [-(-n // s) for n, s in zip(v.shape[2:], strides, strict=True)]
    return b.op("Conv", v, weight, bias, shape=(v.shape[0], out, *sizes), **attributes)


def conv_transpose(b: Builder, v: Value) -> Value | None:
    if v.rank not in (3, 4):
        return None
    group = b.pick([g for g in (1, 2, v.shape[1]) if v.shape[1] % g == 0])
    out = b.between(1, 3)
    kernel = [b.between(1, 3) for _ in v.shape[2:]]
    strides = [b.pick([1, 1, 2]) for _ in kernel]
    pads = [b.pick([0, k - 1]) for k in kernel] * 2
    sizes = [
        s * (n - 1) + k - 2 * p
        for n, s, k, p in zip(v.shape[2:], strides, kernel, pads, strict=False)
    ]
    shape = (v.shape[0], out * group, *sizes)
    if min(sizes) < 1 or prod(shape) > LIMIT:
        return None
    weight = b.weight(v.shape[1], out, *kernel, fan=v.shape[1] // group * prod(kernel))
    bias = b.weight(out * group) if b.chance(0.5) else ""
    return b.op(
        "ConvTranspose", v, weight, bias, shape=shape, group=group, strides=strides, pads=pads
    )


def gemm(b: Builder, v: Value) -> Value | None:
    if v.rank != 2:
        return None
    out, (rows, inner) = b.between(1, 6), v.shape
    swapped = b.chance(0.5)
    weight = b.weight(*((out, inner) if swapped else (inner, out)), fan=inner)
    shapes = [(out,), (1, out), (), (1,)]
    if v.name not in b.batches:
        shapes += [(rows, out), (rows, 1)]
    bias = b.weight(*b.pick(shapes)) if b.chance(0.7) else ""
    attributes = {"transB": int(swapped)}
    if b.chance(0.3):
        attributes |= {"alpha": b.pick([0.5, 2.0]), "beta": b.pick([0.0, 0.5, 2.0])}
    return b.op("Gemm", v, weight, bias, shape=(rows, out), **attributes)


def matmul(b: Builder, v: Value) -> Value | None:
    if v.rank < 2:
        return None
    out = b.between(1, 5)
    if v.rank > 2 and b.chance(0.2):
        weight = b.weight(out, v.shape[-2], fan=v.shape[-2])
        shape = (*v.shape[:-2], out, v.shape[-1])
        (name,) = b.node("MatMul", [weight, v.name])
        result = b.give(name, shape, v)
    else:
        lead = v.shape[-3:-2] if v.rank > 3 and b.chance(0.3) else ()
        weight = b.weight(*lead, v.shape[-1], out, fan=v.shape[-1])
        result = b.op("MatMul", v, weight, shape=(*v.shape[:-1], out))
    if b.chance(0.5):
        bias = b.weight(out) if result.shape[-1] == out else b.weight(out, 1)
        pair = [result.name, bias] if b.chance(0.5) else [bias, result.name]
        (name,) = b.node("Add", pair)
        result = b.give(name, result.shape, result)
    return result


def einsum(b: Builder, v: Value) -> Value | None:
    if v.rank not in (3, 4):
        return None
    letters, out = "nchw"[: v.rank], b.between(1, 4)
    weight = b.weight(v.shape[1], out, fan=v.shape[1])
    target = letters.replace("c", "o")
    return b.op("Einsum", v, weight, shape=(v.shape[0], out, *v.shape[2:]),
                equation=f"{letters},co->{target}")  # fmt: skip


def recurrent(b: Builder, v: Value) -> Value | None:
    if v.rank != 3 or v.name in b.batches:
        return None
    kind, hidden = b.pick(["RNN", "LSTM", "GRU"]), 3
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[kind] * hidden
    weight = b.weight(1, gates, v.shape[2], fan=v.shape[2])
    memory = b.weight(1, gates, hidden, fan=hidden)
    bias = b.weight(1, 2 * gates) if b.chance(0.5) else ""
    (name,) = b.node(kind, [v.name, weight, memory, bias], hidden_size=hidden)
    return b.give(name, (v.shape[0], 1, v.shape[1], hidden))


# --- maps


def batch_norm(b: Builder, v: Value) -> Value | None:
    if v.rank < 2:
        return None
    channels = v.shape[1]
    sign = b.pick(["mixed", "positive", "positive", "zeros"])
    gamma = b.rng.uniform(0.5, 2.0, channels)
    if sign == "mixed":
        gamma *= np.where(b.rng.random(channels) < 0.5, -1, 1)
    if sign == "zeros":
        gamma *= b.rng.random(channels) < 0.7
    shifts = b.rng.normal(size=(2, channels)) * (not b.chance(0.25))
    if b.chance(0.25):  # uniform over the channels
        gamma[:], shifts[:] = gamma[0], shifts[:, :1]
    arrays = [gamma, *shifts, b.rng.uniform(0.3, 2.0, channels)]
    names = [b.constant("p", a) for a in arrays]
    result = b.op("BatchNormalization", v, *names, epsilon=b.pick([1e-5, 1e-3]))
    if b.chance(0.1):  # two that share their parameters
        result = b.op("BatchNormalization", result, *names)
    return result


def arithmetic(b: Builder, v: Value) -> Value | None:
    if not v.rank:
        return None
    axis = b.pick([min(1, v.rank - 1), v.rank - 1, b.between(0, v.rank - 1)])
    if axis == 0 and v.name in b.batches:
        axis = v.rank - 1
    shape = b.pick([(v.shape[axis], *(1,) * (v.rank - 1 - axis)), (1,), ()])
    for _ in range(b.between(1, 3)):
        kind = b.pick(["Mul", "Add", "Sub", "Div", "Neg"])
        if kind == "Neg":
            v = b.op("Neg", v)
            continue
        constant = b.weight(*shape) if kind in ("Add", "Sub") else b.scale(*shape)
        left = kind != "Div" and b.chance(0.3)
        (name,) = b.node(kind, [constant, v.name] if left else [v.name, constant])
        v = b.give(name, v.shape, v)
    return v


def spelt_out(b: Builder, v: Value) -> Value | None:
    """Sub, Div by Sqrt(Add), Mul, Add: a BatchNorm that an exporter has taken apart."""
    if v.rank < 2:
        return None
    shape = (v.shape[1], *(1,) * (v.rank - 2))
    variance = b.constant("p", b.rng.uniform(0.3, 2.0, shape))
    (total,) = b.node("Add", [variance, b.constant("e", np.array(1e-5))])
    (root,) = b.node("Sqrt", [total])
    v = b.op("Sub", v, b.weight(*shape))
    v = b.op("Div", v, root)
    v = b.op("Mul", v, b.scale(*shape))
    return b.op("Add", v, b.weight(*shape))


# --- what stops maps, or lets some of them pass


def rectifier(b: Builder, v: Value) -> Value | None:
    kind = b.pick(["Relu", "Relu", "LeakyRelu", "PRelu"])
    if kind != "PRelu":
        return b.op(kind, v)
    shape = (v.shape[1], *(1,) * (v.rank - 2)) if v.rank > 1 and b.chance(0.5) else (1,)
    return b.op(kind, v, b.scale(*shape))


def nonlinearity(b: Builder, v: Value) -> Value | None:
    kind = b.pick(["Sigmoid", "Tanh", "Elu", "Softplus", "HardSwish", "swish", "Clip"])
    if kind == "Clip":
        low, high = b.constant("c", np.array(-0.5)), b.constant("c", np.array(1.0))
        return b.op("Clip", v, low, high)
    if kind == "swish":
        gate = b.op("Sigmoid", v)
        (name,) = b.node("Mul", [v.name, gate.name])
        return b.give(name, v.shape, v)
    return b.op(kind, v)


def identity(b: Builder, v: Value) -> Value | None:
    kind = b.pick(["Identity", "Dropout", "Cast"])
    if kind == "Cast":
        import onnx

        return b.op(kind, v, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(b.dtype)))
    return b.op(kind, v)


def normalisation(b: Builder, v: Value) -> Value | None:
    if v.rank < 3 or prod(v.shape[2:]) < 4:
        return None
    if b.chance(0.5):
        return b.op("InstanceNormalization", v, b.scale(v.shape[1]), b.weight(v.shape[1]))
    axis = b.pick([1, 2])
    bias = b.weight(*v.shape[axis:]) if b.chance(0.5) else ""
    return b.op("LayerNormalization", v, b.scale(*v.shape[axis:]), bias, axis=axis)
