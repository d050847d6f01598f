"""LSTM, GRU and RNN: torch's kernels for the usual form, a plain loop over time for the rest.

Shapes: X (T, N, I), or (N, T, I) with layout 1; W (D, g*H, I), R (D, g*H, H), B (D, 2*g*H) with D
directions and g gates. The loop takes ONNX's order (LSTM i, o, f, c; GRU z, r, h), the kernels
torch's (i, f, c, o; r, z, h).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bnpass.importer.gates import USUAL

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

Triple = tuple[Tensor, Tensor, Tensor]
Weights = Tensor | Sequence[Tensor]

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


def by_loop(
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
) -> Triple:
    """ONNX LSTM (22), GRU (22) and RNN (22): Y, Y_h and Y_c (of an LSTM; else Y_h again)."""
    x, start = _prepared(x, h0, c0, layout, R.shape[0], R.shape[2])
    bias = torch.zeros_like(W[:, :, 0]).repeat(1, 2) if B is None else B
    per = len(USUAL[kind])
    cells = [
        Cell(
            kind, W[d], R[d], bias[d].chunk(2)[0], bias[d].chunk(2)[1],
            None if P is None else P[d],
            tuple(_activation(*a) for a in activations[per * d : per * (d + 1)]),
            clip, linear_before_reset, input_forget,
        )
        for d in range(R.shape[0])
    ]  # fmt: skip
    return _laid_out(_over_time(x, cells, start, direction, lengths), layout)


def _prepared(
    x: Tensor, h0: Tensor | None, c0: Tensor | None, layout: int, directions: int, hidden: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The input with time first, and the states to start from."""
    if layout:
        x = x.transpose(0, 1)
        h0 = None if h0 is None else h0.transpose(0, 1)
        c0 = None if c0 is None else c0.transpose(0, 1)
    zeros = x if None not in (h0, c0) else x.new_zeros(directions, x.shape[1], hidden)
    return x, (zeros if h0 is None else h0, zeros if c0 is None else c0)


def _laid_out(made: Triple, layout: int) -> Triple:
    if not layout:
        return made
    y, h, c = made
    return y.permute(2, 0, 1, 3), h.transpose(0, 1), c.transpose(0, 1)


def _activation(name: str, parameters: tuple[float, ...]) -> Activation:
    function = ACTIVATIONS[name][0]
    return lambda x: function(x, *parameters)


# -- torch's kernels -------------------------------------------------------------------------------


def by_kernel(
    x: Tensor,
    W: Weights,
    R: Weights,
    B: Weights | None,
    h0: Tensor | None,
    c0: Tensor | None,
    kind: str,
    direction: str,
    layout: int,
    activation: str,
) -> Triple:
    """What :func:`by_loop` computes, for gates in torch's order.

    Args:
        W, R, B: (D, ...) each, or the tensors of torch's modules, one after the other.
        activation: of an RNN: tanh or relu.
    """
    w, r = _directions(W), _directions(R)
    biases = () if B is None else _biases(B)
    weights = [part for d in range(len(w)) for part in (w[d], r[d], *biases[2 * d : 2 * d + 2])]
    x, start = _prepared(x, h0, c0, layout, len(r), r[0].shape[1])
    x = x.flip(0) if direction == "reverse" else x
    # "train" only steers the dropout, which is 0; without it cuDNN refuses a backward pass
    common = (weights, bool(biases), 1, 0.0, torch.is_grad_enabled(), len(w) == 2, False)
    if kind == "LSTM":
        y, h, c = torch.lstm(x, start, *common)
    else:
        y, h = _SIMPLE[kind, activation](x, start[0], *common)
        c = h
    size = (*y.shape[:2], len(w), y.shape[2] // len(w))
    y = y.unsqueeze(1) if len(w) == 1 else y.reshape(size).transpose(1, 2)
    return _laid_out((y.flip(0) if direction == "reverse" else y, h, c), layout)


_SIMPLE: dict[tuple[str, str], Callable[..., tuple[Tensor, Tensor]]] = {
    ("GRU", "sigmoid"): torch.gru, ("RNN", "tanh"): torch.rnn_tanh, ("RNN", "relu"): torch.rnn_relu,
}  # fmt: skip


def _directions(weight: Weights) -> Sequence[Tensor]:
    if not isinstance(weight, Tensor):
        return weight
    return (weight.squeeze(0),) if weight.shape[0] == 1 else weight.unbind(0)


def _biases(bias: Weights) -> Sequence[Tensor]:
    return bias.reshape(2 * bias.shape[0], -1).unbind(0) if isinstance(bias, Tensor) else bias


def state_bias(bias: Tensor) -> Tensor:
    """B (D, 2*g*H) of a layer whose Wb, the first half, is 0 and stays so: Rb alone is trained."""
    own = bias.shape[1] // 2
    return torch.cat([torch.zeros_like(bias[:, :own]), bias[:, own:]], 1)


# -- a loop over time ------------------------------------------------------------------------------


def _over_time(
    x: Tensor,
    cells: Sequence[Cell],
    start: tuple[Tensor, Tensor],
    direction: str,
    lengths: Tensor | None,
) -> Triple:
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
