"""Recurrent layers: the first layer's input weights take in what arrives."""

from __future__ import annotations

from typing import Any

from torch import nn

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.targets import module

_KINDS: dict[type[nn.Module], str] = {nn.RNN: "RNN", nn.LSTM: "LSTM", nn.GRU: "GRU"}


@module(nn.RNN, nn.LSTM, nn.GRU)
def recurrent(call: Call, x: Any, hx: Any = None) -> None:
    """RNN, LSTM or GRU (X, W, R, B): W and B of all directions of the first layer, stacked.

    torch's gate order and the layers behind the first are no concern of a map on X.
    """
    del hx
    m: Any = call.module
    if len(call.shape(x)) != 3:
        raise UnknownError("an input without a batch axis")
    ends = ["", "_reverse"] if m.bidirectional else [""]
    weight = call.stacked("weight_ih_l0", [getattr(m, f"weight_ih_l0{e}") for e in ends])
    inputs = [call.value(x), weight, ""]
    if m.bias:
        inputs.append(call.paired([(f"bias_ih_l0{e}", f"bias_hh_l0{e}") for e in ends]))
    else:
        inputs.append(f"{call.path}.bias")  # it cannot get one: no shift enters
    kind = next(k for cls, k in _KINDS.items() if isinstance(m, cls))
    call.emit(kind, inputs, slots={1: "weight_ih_l0", 3: "bias_ih_l0"})
