"""Nonlinearities that hardly let anything through: saturated, or dead for every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bnpass.data.protocol import bind
from bnpass.nn.calls import Feeder, device_of, takes_of

_NEAR = 0.01  # as near to its bound a sigmoid's slope is below 1 % of 1
_MOST = 0.5  # share of the units from which on a nonlinearity counts as stuck


def _dead(y: Tensor) -> Tensor:
    """Units that give 0 for every sample."""
    return (y == 0).flatten(1).all(0) if y.dim() < 3 else (y == 0).transpose(0, 1).flatten(1).all(1)


def _sigmoid(y: Tensor) -> Tensor:
    return (y < _NEAR) | (y > 1 - _NEAR)


def _tanh(y: Tensor) -> Tensor:
    return y.abs() > 1 - _NEAR


_STUCK: dict[Any, Callable[[Tensor], Tensor]] = {
    F.relu: _dead, torch.relu: _dead, nn.ReLU: _dead,
    F.sigmoid: _sigmoid, torch.sigmoid: _sigmoid, nn.Sigmoid: _sigmoid,
    F.tanh: _tanh, torch.tanh: _tanh, nn.Tanh: _tanh,
}  # fmt: skip
"""What of a result tells that nothing gets through, by function or module type."""


class _StuckFinder(fx.Interpreter):
    """Runs a graph and judges the results of its nonlinearities."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.seen, self.stuck = 0, list[str]()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; judge its result."""
        result = super().run_node(n)
        target: Any = n.target
        if n.op == "call_module":
            target = type(self.fetch_attr(str(n.target)))
        elif n.op == "call_method":
            target = getattr(torch, str(n.target), None)
        judge = _STUCK.get(target) if isinstance(result, Tensor) and result.dim() > 1 else None
        if judge is not None:
            self.seen += 1
            if float(judge(result).float().mean()) > _MOST:
                self.stuck.append(str(n.meta.get("onnx", (n.name,))[0] or n.name))
        return result


def stuck_nonlinearities(gm: fx.GraphModule, inputs: Any) -> tuple[list[str], int]:
    """Names of those of which more than half is saturated or dead, and how many were looked at.

    Args:
        gm: the network; it is run once, in eval mode, without gradients.
        inputs: of a batch: one array, a tuple, or a mapping by name.
    """
    takes, mode = takes_of(gm), gm.training
    named = Feeder(gm, device_of(gm))(bind(inputs, takes)).by_name(takes)
    recorder = _StuckFinder(gm.eval())
    try:
        with torch.no_grad():
            recorder.run(*(named[slot.name] for slot in takes.slots))
    finally:
        gm.train(mode)
    return recorder.stuck, recorder.seen
