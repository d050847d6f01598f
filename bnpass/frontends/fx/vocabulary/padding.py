"""Padding."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.targets import function, module

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(call: Call, x: Any, pad: Any, mode: str, value: Any, slot: str) -> None:
    """ONNX Pad: all begins, then all ends; torch counts pairs from the last axis."""
    info = call.info(x)
    rank = len(info.shape)
    if isinstance(pad, int):
        pad = [pad] * 2 * (rank - 2)
    if not all(isinstance(p, int) for p in pad):
        raise UnknownError("its padding is computed")
    begins, ends = [0] * rank, [0] * rank
    for i in range(len(pad) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = pad[2 * i], pad[2 * i + 1]
    inputs = [call.value(x), call.ints("pads", begins + ends)]
    slots = {}
    if mode == "constant":
        fill = np.asarray(float(value or 0), np.float64)
        inputs.append(call.constant("value", fill, info.dtype))
        slots = {2: slot}
    call.emit("Pad", inputs, {"mode": _MODES[mode]}, slots=slots, scalars=[2])


@function("F.pad", "aten.pad")
def pad(call: Call, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> None:
    """Pad."""
    _pad(call, x, pad, mode, value, "value")


@function("constant_pad_nd")
def constant_pad(call: Call, x: Any, pad: Any, value: Any = 0) -> None:
    """Pad with a constant."""
    _pad(call, x, pad, "constant", value, "value")


@module(
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d
)  # fmt: skip
def constant_pad_module(call: Call, x: Any) -> None:
    """Pad with a constant."""
    m: Any = call.module
    _pad(call, x, m.padding, "constant", getattr(m, "value", 0.0), "value")


@module(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
def reflection_pad_module(call: Call, x: Any) -> None:
    """Pad that mirrors."""
    m: Any = call.module
    _pad(call, x, m.padding, "reflect", None, "")


@module(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
def replication_pad_module(call: Call, x: Any) -> None:
    """Pad that repeats the edge."""
    m: Any = call.module
    _pad(call, x, m.padding, "replicate", None, "")


@module(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
def circular_pad_module(call: Call, x: Any) -> None:
    """Pad that wraps around."""
    m: Any = call.module
    _pad(call, x, m.padding, "circular", None, "")
