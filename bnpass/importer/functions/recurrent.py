"""LSTM, GRU and RNN: torch's kernels for the usual form, a plain loop over time for the rest.

Shapes: X (T, N, I), or (N, T, I) with layout 1; W (D, g*H, I), R (D, g*H, H), B (D, 2*g*H) with D
directions and g gates in ONNX's order: LSTM i, o, f, c; GRU z, r, h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[float | None, ...]]] = {
    "relu": (F.relu, ()),
    "tanh": (torch.tanh, ()),
    "sigmoid": (torch.sigmoid, ()),
    "softsign": (F.softsign, ()),
    "softplus": (F.softplus, ()),
    "leakyrelu": (F.leaky_relu, (0.01,)),
    "thresholdedrelu": (lambda x, alpha: torch.where(x > alpha, x, 0.0), (None,)),
    "elu": (F.elu, (1.0,)),
    "affine": (lambda x, alpha, beta: alpha * x + beta, (None, None)),
    "scaledtanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), (None, None)),
    "hardsigmoid": (lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0.0, 1.0), (0.2, 0.5)),
}
"""Name -> function of x, alpha and beta, and the defaults of as many of the two as it takes.

None: onnxruntime takes another default than ONNX, so it must be given.
"""

Chosen = tuple[str, tuple[float, ...]]
"""The name of an activation with its parameters."""

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
USUAL = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
_TO_TORCH = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}


@dataclass(frozen=True)
class Cell:
    """One direction: its weights and what it computes."""

    kind: str
    W: Tensor
    R: Tensor
    Wb: Tensor
    Rb: Tensor
    P: Tensor | None
    activations: tuple[Activation, ...]
    clip: float | None
    linear_before_reset: bool
    input_forget: bool


def recurrent(
    x: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None,
    lengths: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    P: Tensor | None,
    kind: str,
    direction: str,
    layout: int,
    activations: Sequence[Chosen],
    clip: float | None,
    linear_before_reset: bool,
    input_forget: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX LSTM (22), GRU (22) and RNN (22): Y, Y_h and Y_c (of an LSTM; else Y_h again)."""
    if layout:
        x = x.transpose(0, 1)
        h0 = None if h0 is None else h0.transpose(0, 1)
        c0 = None if c0 is None else c0.transpose(0, 1)
    directions, hidden = R.shape[0], R.shape[2]
    zeros = torch.zeros(directions, x.shape[1], hidden, dtype=x.dtype, device=x.device)
    start = (zeros if h0 is None else h0, zeros if c0 is None else c0)
    bias = torch.zeros_like(W[:, :, 0]).repeat(1, 2) if B is None else B
    per = len(USUAL[kind])
    names = tuple(name for name, _ in activations)
    usual = names == USUAL[kind] * directions or (
        kind == "RNN" and names == ("relu",) * directions
    )
    resets = kind != "GRU" or linear_before_reset
    if usual and resets and lengths is None and clip is None and P is None and not input_forget:
        made = _by_torch(x, W, R, bias, start, kind, direction, names[0])
    else:
        cells = [
            Cell(
                kind, W[d], R[d], bias[d].chunk(2)[0], bias[d].chunk(2)[1],
                None if P is None else P[d],
                tuple(_activation(*a) for a in activations[per * d : per * (d + 1)]),
                clip, linear_before_reset, input_forget,
            )
            for d in range(directions)
        ]  # fmt: skip
        made = _by_loop(x, cells, start, direction, lengths)
    y, h, c = made
    if layout:
        return y.permute(2, 0, 1, 3), h.transpose(0, 1), c.transpose(0, 1)
    return y, h, c


def _activation(name: str, parameters: tuple[float, ...]) -> Activation:
    function = ACTIVATIONS[name][0]
    return lambda x: function(x, *parameters)


# -- torch's kernels -------------------------------------------------------------------------------


def _by_torch(
    x: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor,
    start: tuple[Tensor, Tensor],
    kind: str,
    direction: str,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = []
    for d in range(W.shape[0]):
        parts = (W[d], R[d], *B[d].chunk(2))
        weights += [_reorder(part, _TO_TORCH[kind]) for part in parts]
    both = direction == "bidirectional"
    x = x.flip(0) if direction == "reverse" else x
    # "train" only steers the dropout, which is 0; without it cuDNN refuses a backward pass
    common = (weights, True, 1, 0.0, torch.is_grad_enabled(), both, False)
    if kind == "LSTM":
        y, h, c = torch.lstm(x, start, *common)
    else:
        name = "gru" if kind == "GRU" else f"rnn_{activation}"
        y, h = getattr(torch, name)(x, start[0], *common)
        c = h
    y = y.reshape(*y.shape[:2], W.shape[0], -1).transpose(1, 2)
    return (y.flip(0) if direction == "reverse" else y), h, c


def _reorder(part: Tensor, order: Sequence[int]) -> Tensor:
    if len(order) == 1:
        return part
    gates = part.chunk(len(order))
    return torch.cat([gates[g] for g in order])


# -- a loop over time ------------------------------------------------------------------------------


def _by_loop(
    x: Tensor,
    cells: Sequence[Cell],
    start: tuple[Tensor, Tensor],
    direction: str,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    steps = x.shape[0]
    ends = torch.full((x.shape[1],), steps, device=x.device) if lengths is None else lengths
    ends = ends.to(x.device)
    results = []
    for d, cell in enumerate(cells):
        backwards = direction == "reverse" or d == 1
        seen = _reversed(x, ends) if backwards else x
        y, h, c = _run(seen, cell, start[0][d], start[1][d], ends)
        results.append((_reversed(y, ends) if backwards else y, h, c))
    ys, hs, cs = zip(*results, strict=True)
    return torch.stack(ys, dim=1), torch.stack(hs), torch.stack(cs)


def _reversed(x: Tensor, ends: Tensor) -> Tensor:
    """(T, N, ...): the first ends[n] steps of sample n backwards, the others where they are."""
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    return x.gather(0, index.unsqueeze(2).expand_as(x).to(torch.int64))


def _run(
    x: Tensor, cell: Cell, h: Tensor, c: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    step = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[cell.kind]
    outputs = []
    for t in range(x.shape[0]):
        alive = (t < ends).unsqueeze(1)
        new_h, new_c = step(cell, x[t], h, c)
        h, c = torch.where(alive, new_h, h), torch.where(alive, new_c, c)
        outputs.append(torch.where(alive, new_h, torch.zeros_like(new_h)))
    return torch.stack(outputs), h, c


def _cut(cell: Cell, x: Tensor) -> Tensor:
    return x if cell.clip is None else x.clamp(-cell.clip, cell.clip)


def _lstm(cell: Cell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """With ``clip``, what enters the gates is cut; the cell is not, as in onnxruntime."""
    f_act, g_act, h_act = cell.activations
    gates = F.linear(x, cell.W, cell.Wb) + F.linear(h, cell.R, cell.Rb)
    i, o, f, g = gates.chunk(4, dim=1)
    p_i, p_o, p_f = cell.P.chunk(3) if cell.P is not None else (0.0, 0.0, 0.0)
    i = f_act(_cut(cell, i + p_i * c))
    f = 1 - i if cell.input_forget else f_act(_cut(cell, f + p_f * c))
    c = f * c + i * g_act(_cut(cell, g))
    o = f_act(_cut(cell, o + p_o * c))
    return o * h_act(c), c


def _gru(cell: Cell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    f_act, g_act = cell.activations
    z, r, n = F.linear(x, cell.W, cell.Wb).chunk(3, dim=1)
    R_z, R_r, R_n = cell.R.chunk(3)
    b_z, b_r, b_n = cell.Rb.chunk(3)
    z = f_act(_cut(cell, z + F.linear(h, R_z, b_z)))
    r = f_act(_cut(cell, r + F.linear(h, R_r, b_r)))
    late = cell.linear_before_reset
    n = n + (r * F.linear(h, R_n, b_n) if late else F.linear(r * h, R_n, b_n))
    h = (1 - z) * g_act(_cut(cell, n)) + z * h
    return h, c


def _rnn(cell: Cell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    (act,) = cell.activations
    total = F.linear(x, cell.W, cell.Wb) + F.linear(h, cell.R, cell.Rb)
    return act(_cut(cell, total)), c
