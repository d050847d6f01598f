"""RNN, LSTM and GRU, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, Outputs, operator
from bnpass.verdict.evaluator.elementwise import sigmoid, softplus

Function = Callable[[Array], Array]


def _activation(name: str, alpha: Any, beta: Any) -> Function:
    table: dict[str, Function] = {
        "sigmoid": sigmoid,
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
        "softplus": softplus,
        "softsign": lambda x: x / (1 + np.abs(x)),
        "affine": lambda x: _or(alpha, 1.0) * x + _or(beta, 0.0),
        "leakyrelu": lambda x: np.where(x < 0, _or(alpha, 0.01) * x, x),
        "elu": lambda x: np.where(x < 0, _or(alpha, 1.0) * np.expm1(np.minimum(x, 0)), x),
        "hardsigmoid": lambda x: np.clip(_or(alpha, 0.2) * x + _or(beta, 0.5), 0, 1),
        "scaledtanh": lambda x: _or(alpha, 1.0) * np.tanh(_or(beta, 1.0) * x),
        "thresholdedrelu": lambda x: np.where(x > _or(alpha, 1.0), x, 0),
    }
    return table[name.lower()]


def _or(value: Any, default: float) -> float:
    return default if value is None else float(value)


_DEFAULTS = {"RNN": ["Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
_TAKES = {"affine": 2, "leakyrelu": 1, "elu": 1, "hardsigmoid": 2, "scaledtanh": 2,
          "thresholdedrelu": 1}  # fmt: skip


def _activations(call: Invocation, directions: int) -> list[list[Function]]:
    names = [n.decode() if isinstance(n, bytes) else n for n in call.attrs.get("activations", [])]
    each = len(_DEFAULTS[call.kind])
    names = names or _DEFAULTS[call.kind] * directions
    alphas = iter(call.attrs.get("activation_alpha", []))
    betas = iter(call.attrs.get("activation_beta", []))
    made = []
    for name in names:
        takes = _TAKES.get(name.lower(), 0)
        alpha = next(alphas, None) if takes else None
        beta = next(betas, None) if takes > 1 else None
        made.append(_activation(name, alpha, beta))
    return [made[i * each : (i + 1) * each] for i in range(directions)]


@operator("RNN", "LSTM", "GRU")
def _recurrent(call: Invocation) -> Outputs:
    """Y (steps, directions, batch, hidden), Y_h and, for LSTM, Y_c (directions, batch, hidden)."""
    batch_first = bool(call.attrs.get("layout", 0))
    x = call[0].swapaxes(0, 1) if batch_first else call[0]
    directions, hidden = call[1].shape[0], call[2].shape[-1]
    way = call.attrs.get("direction", "forward")
    lengths = call.get(4)
    lengths = np.full(x.shape[1], len(x)) if lengths is None else lengths.astype(np.int64)
    results = []
    for d, functions in enumerate(_activations(call, directions)):
        cell = _Cell(call, d, functions, hidden, batch_first)
        backward = way == "reverse" or d == 1
        results.append(cell.run(_turned(x, lengths) if backward else x, lengths))
        if backward:
            results[-1] = (_turned(results[-1][0], lengths), *results[-1][1:])
    y = np.stack([r[0] for r in results], 1)
    last = [np.stack([r[k] for r in results]) for k in (1, 2)]
    if batch_first:
        y, last = y.transpose(2, 0, 1, 3), [a.swapaxes(0, 1) for a in last]
    return (y, *last[: 2 if call.kind == "LSTM" else 1])


def _turned(x: Array, lengths: Array) -> Array:
    """Each sample's first ``length`` steps backward; zeros behind them."""
    y = np.zeros_like(x)
    for sample, length in enumerate(lengths):
        y[:length, sample] = x[:length, sample][::-1]
    return y


class _Cell:
    """One direction of a layer: its weights and its step."""

    def __init__(
        self, call: Invocation, d: int, functions: list[Function], hidden: int, batch_first: bool
    ) -> None:
        self.call, self.functions, self.hidden = call, functions, hidden
        self.w, self.r = call[1][d], call[2][d]
        gates = len(self.w) // hidden
        b = call.get(3)
        both = np.zeros((2, gates * hidden)) if b is None else b[d].reshape(2, -1)
        self.wb: Array = both[0]
        self.rb: Array = both[1]
        states = [call.get(i) for i in (5, 6)]
        if batch_first:
            states = [None if s is None else s.swapaxes(0, 1) for s in states]
        self.h0, self.c0 = (None if s is None else s[d] for s in states)
        p = call.get(7) if call.kind == "LSTM" else None
        self.p = np.zeros((3, hidden)) if p is None else p[d].reshape(3, hidden)
        clip = call.attrs.get("clip")
        self.clip = np.inf if clip is None else float(clip)

    def run(self, x: Array, lengths: Array) -> tuple[Array, Array, Array]:
        """(all h, last h, last c); steps behind a sample's length give 0 and change nothing."""
        batch = x.shape[1]
        zero = np.zeros((batch, self.hidden))
        h = zero if self.h0 is None else self.h0
        c = zero if self.c0 is None else self.c0
        step = {"RNN": self._rnn, "LSTM": self._lstm, "GRU": self._gru}[self.call.kind]
        ys = np.zeros((len(x), batch, self.hidden))
        for t, now in enumerate(x):
            new_h, new_c = step(now, h, c)
            live = (t < lengths)[:, None]
            h, c = np.where(live, new_h, h), np.where(live, new_c, c)
            ys[t] = np.where(live, new_h, 0.0)
        return ys, h, c

    def _clipped(self, a: Array) -> Array:
        return np.clip(a, -self.clip, self.clip)

    def _rnn(self, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        pre = x @ self.w.T + h @ self.r.T + self.wb + self.rb
        return self.functions[0](self._clipped(pre)), c

    def _lstm(self, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        f, g, hh = self.functions
        pre = x @ self.w.T + h @ self.r.T + self.wb + self.rb
        i, o, forget, cell = np.split(pre, 4, -1)
        p_i, p_o, p_f = self.p
        i = f(self._clipped(i + p_i * c))
        forget = f(self._clipped(forget + p_f * c))
        if self.call.attrs.get("input_forget", 0):
            forget = 1 - i
        c = forget * c + i * g(self._clipped(cell))
        o = f(self._clipped(o + p_o * c))
        return o * hh(c), c

    def _gru(self, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        f, g = self.functions
        n = self.hidden
        xs, hs = x @ self.w.T + self.wb, h @ self.r[: 2 * n].T + self.rb[: 2 * n]
        z = f(self._clipped(xs[:, :n] + hs[:, :n]))
        r = f(self._clipped(xs[:, n : 2 * n] + hs[:, n:]))
        w, b = self.r[2 * n :], self.rb[2 * n :]
        if self.call.attrs.get("linear_before_reset", 0):
            new = xs[:, 2 * n :] + r * (h @ w.T + b)
        else:
            new = xs[:, 2 * n :] + (r * h) @ w.T + b
        return (1 - z) * g(self._clipped(new)) + z * h, c
