"""The whole path of a user's module, in one row: what an insertion and a fold leave of it.

insert -> two steps of an ordinary loop -> calibrate -> fold -> export -> onnxruntime.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

import bnpass
from bnpass.frontends.fx.normhook import InputNorm, OutputNorm
from bnpass.frontends.fx.structure import tensors_in
from bnpass.runtime.session import session


@dataclass
class PathRow:
    """What came of one network.

    Attributes:
        sites: BatchNorms inserted.
        at_output, at_input, inside: of those the ones at anchors a, b and c.
        same_class: the result is of the network's class, and so is the folded one.
        graphs: modules inside that became graphs, by the insertion and by the fold.
        old_state: the network's own state_dict loads, strictly, and computes the same.
        still: two passes in eval mode agree, bit for bit.
        alive: how far two passes in training mode differ, over the largest output; ``given`` for
            the network that was given.
        dropped: share of samples that drop path set to zero in training; None without drop path.
        left: BatchNorms in the folded network.
        error: of onnxruntime against torch with BN; ``own``: of torch itself, float32 against
            float64; ``exact``: of the fold where everything is float64; over the largest output.
        seconds: CPU time of insert and fold.
    """

    name: str
    sites: int = 0
    at_output: int = 0
    at_input: int = 0
    inside: int = 0
    same_class: bool = False
    graphs: int = 0
    old_state: bool = False
    still: bool = False
    alive: float = 0.0
    given: float = 0.0
    dropped: float | None = None
    left: int = 0
    error: float | None = None
    own: float = 0.0
    exact: float = 0.0
    seconds: float = 0.0
    failed: str = ""


def whole_path(name: str, net: nn.Module, x: Any, folder: Path) -> PathRow:
    """Take a network the whole way."""
    row = PathRow(name)
    start = time.process_time()
    made = bnpass.insert(net.train(), x)
    row.seconds = time.process_time() - start
    _anchors(row, made)
    _train(made, x)
    row.given, row.alive = _apart(net, x), _apart(made, x)
    row.dropped = _dropped(made, x)
    row.old_state = _takes_old_state(net, x)
    bnpass.calibrate(made, [x])
    start = time.process_time()
    folded = bnpass.fold(made)
    row.seconds += time.process_time() - start
    row.same_class = type(made) is type(net) is type(folded)
    row.graphs = sum(isinstance(m, fx.GraphModule) for m in folded.modules())
    row.left = sum(isinstance(m, _BatchNorm) for m in folded.modules())
    row.still = _apart(folded, x) == 0
    _errors(row, made, folded, x, folder)
    return row


def _anchors(row: PathRow, made: nn.Module) -> None:
    hooks = [h for m in made.modules() for h in (*m._forward_hooks.values(),
                                                 *m._forward_pre_hooks.values())]  # fmt: skip
    row.sites = sum(isinstance(m, _BatchNorm) for m in made.modules())
    row.at_output = sum(isinstance(h, OutputNorm) for h in hooks)
    row.at_input = sum(isinstance(h, InputNorm) for h in hooks)
    row.inside = row.sites - row.at_output - row.at_input


def called(net: nn.Module, x: Any) -> list[torch.Tensor]:
    """The floating tensors that a network makes of its inputs."""
    y = net(**x) if isinstance(x, Mapping) else net(x)
    return [t for t in tensors_in(y) if t.is_floating_point()]


def _train(net: nn.Module, x: Any) -> None:
    optimizer = torch.optim.SGD(net.train().parameters(), lr=1e-3)
    for _ in range(2):
        loss = torch.stack([y.square().mean() for y in called(net, x)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _apart(net: nn.Module, x: Any) -> float:
    """The largest difference of two passes in the network's mode, over the largest output."""
    return relative(called(net, x), called(net, x))


def relative(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """The largest difference, over the largest number of each tensor."""
    return max(float((a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1e-30))
               for a, b in zip(got, want, strict=True))  # fmt: skip


@torch.no_grad()
def _dropped(net: nn.Module, x: Any) -> float | None:
    """The share of samples that drop path modules with a rate set to zero."""
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        del module
        live = args[0].flatten(1).abs().amax(1) > 0
        seen.append((output.flatten(1).abs().amax(1) == 0)[live])

    paths = [m for m in net.modules() if type(m).__name__.endswith("DropPath")
             and getattr(m, "drop_prob", 0)]  # fmt: skip
    handles = [m.register_forward_hook(note) for m in paths]
    for _ in range(4 if paths else 0):
        called(net, x)
    for handle in handles:
        handle.remove()
    return float(torch.cat(seen).double().mean()) if seen else None


@torch.no_grad()
def _takes_old_state(net: nn.Module, x: Any) -> bool:
    other = copy.deepcopy(net)
    for p in other.parameters():
        p.add_(0.01 * torch.randn_like(p))
    made = bnpass.insert(net, x)
    made.load_state_dict(other.state_dict(), strict=True)
    return relative(called(made.eval(), x), called(other.eval(), x)) < 1e-3


class _Exported(nn.Module):
    """A network with inputs by position and its floating tensors as outputs."""

    def __init__(self, net: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """inputs: one tensor a name; without names the only one."""
        x = dict(zip(self.names, inputs, strict=True)) if self.names else inputs[0]
        return tuple(called(self.net, x))


@torch.no_grad()
def _errors(row: PathRow, made: nn.Module, folded: nn.Module, x: Any, folder: Path) -> None:
    named = isinstance(x, Mapping)
    want = called(made.eval(), x)
    wide = {k: _double(v) for k, v in x.items()} if named else _double(x)
    exact = called(copy.deepcopy(made).double(), wide)
    row.own = relative(want, exact)
    row.exact = relative(called(bnpass.fold(copy.deepcopy(made).double(), wide), wide), exact)
    inputs = tuple(x.values()) if named else (x,)
    path = folder / "module.onnx"
    shell = _Exported(folded, list(x) if named else [])
    bnpass.export(shell, inputs, path, verify=False, dynamic_batch=False, force=True)
    run = session(path)
    feeds = {i.name: v.numpy() for i, v in zip(run.get_inputs(), inputs, strict=True)}
    row.error = relative([torch.from_numpy(y) for y in run.run(None, feeds)], want)


def _double(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value
