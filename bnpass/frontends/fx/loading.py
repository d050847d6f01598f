"""An old state_dict loads into a network with inserted norms: dropped biases move into beta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bnpass.frontends.fx.read import TracedModel
from bnpass.ir.affine import Map
from bnpass.ir.edits import BiasDrop
from bnpass.ir.graph import Op
from bnpass.ir.operators import operator
from bnpass.passes.planner import Planner
from bnpass.passes.sites import InsertPlan


@dataclass(frozen=True)
class Arrival:
    """What one dropped bias adds to one new norm: ``coefficient * bias[index]``, each (C,).

    Attributes:
        key: path of the bias in an old state_dict.
        norm: name of the norm.
    """

    key: str
    norm: str
    index: tuple[int, ...]
    coefficient: tuple[float, ...]


@dataclass(frozen=True)
class OldStateDict:
    """A hook for load_state_dict: gives the new norms what they need to change nothing.

    A state_dict without any entry of the new norms is that of the network before the insertion.
    Its biases that were dropped move into beta; gamma = sqrt(1 + eps), mean 0, variance 1.
    """

    norms: Mapping[str, float]
    """eps of every new norm, by path."""
    arrivals: tuple[Arrival, ...]

    def __call__(
        self, module: torch.nn.Module, state: dict[str, Any], prefix: str, *rest: Any
    ) -> None:
        """See :meth:`torch.nn.Module.register_load_state_dict_pre_hook`."""
        del rest
        known = [p for p in self.norms if _has(module, p)]
        if not known or any(k.startswith(f"{prefix}{p}.") for p in known for k in state):
            return
        for path in known:
            self._fill(module.get_submodule(path), path, state, prefix)
        for arrival in self.arrivals:
            if not _has(module, arrival.key):
                state.pop(prefix + arrival.key, None)

    def _fill(self, norm: Any, path: str, state: dict[str, Any], prefix: str) -> None:
        beta = torch.zeros(norm.num_features, dtype=torch.float64)
        for arrival in self.arrivals:
            bias = state.get(prefix + arrival.key)
            if arrival.norm == path and bias is not None:
                flat = bias.detach().double().cpu().reshape(-1)
                beta += torch.tensor(arrival.coefficient).double() * flat[list(arrival.index)]
        # a norm on "meta" takes these tensors over: they lie where the others of the state do
        near = next((t.device for t in state.values() if isinstance(t, torch.Tensor)), None)
        place = near if norm.weight.is_meta else norm.weight.device
        dtype, made = norm.weight.dtype, torch.full_like(beta, 1.0 + self.norms[path]).sqrt()
        zeros = torch.zeros_like(beta)
        new = {"weight": made, "bias": beta, "running_mean": zeros, "running_var": zeros + 1.0}
        for name, values in new.items():
            state[f"{prefix}{path}.{name}"] = values.to(dtype=dtype, device=place, copy=True)
        count = torch.zeros((), dtype=torch.int64, device=place)
        state[f"{prefix}{path}.num_batches_tracked"] = count


def _has(module: torch.nn.Module, path: str) -> bool:
    at: Any = module
    for part in path.split("."):
        at = getattr(at, part, None)
        if at is None:
            return False
    return True


def uninstall(module: torch.nn.Module) -> None:
    """Take away the hooks none of whose norms is left."""
    for key, held in list(module._load_state_dict_pre_hooks.items()):
        hook = getattr(held, "hook", held)
        if isinstance(hook, OldStateDict) and not any(_has(module, p) for p in hook.norms):
            del module._load_state_dict_pre_hooks[key]


def install(
    gm: torch.nn.Module, arrivals: list[Arrival], paths: dict[str, str], eps: float
) -> None:
    """Register the hook on a network with the new norms at ``paths``."""
    placed = tuple(
        Arrival(a.key, paths[a.norm], a.index, a.coefficient) for a in arrivals if a.norm in paths
    )
    hook = OldStateDict(dict.fromkeys(paths.values(), eps), placed)
    gm.register_load_state_dict_pre_hook(hook)


# --- where the biases go -------------------------------------------------------------------------


def find_arrivals(reading: TracedModel, plan: InsertPlan) -> list[Arrival]:
    """Where every bias that a plan drops goes; those that mix on their way are left out."""
    planner = Planner(reading.graph)
    stops = frozenset(s.value for s in plan.sites if s.readers is None)
    found = []
    for drop in (d for site in plan.sites for d in site.drops):
        key = reading.attributes.get(drop.op.input(drop.index))
        if key is None:
            continue
        n = int(np.prod(reading.constants[drop.op.input(drop.index)].shape))
        probes = [np.ones(n), np.arange(n) + 1.0, np.random.default_rng(0).standard_normal(n)]
        sent = [_sent(drop, probe, stops, planner) for probe in probes]
        for site in plan.sites:
            if site.value in sent[0]:
                vectors = [s[site.value].vectors(site.axis, site.channels) for s in sent]
                one = _arrival([v[1] for v in vectors if v is not None], probes)
                if one is not None:
                    found.append(Arrival(key, site.name, *one))
    return found


def _sent(
    drop: BiasDrop, vector: np.ndarray, stops: frozenset[str], planner: Planner
) -> dict[str, Map]:
    """The shift that arrives at every site if the bias were ``vector``."""
    op = drop.op
    rank = len(planner.context.shape(op.outputs[0]))
    shift = vector.reshape(_aligned(op, drop, rank, planner)) * _factor(op, drop)
    trial = planner.forward(op.outputs[0], Map(np.ones((1,) * rank), shift), stops)
    return trial.arrived


def _aligned(op: Op, drop: BiasDrop, rank: int, planner: Planner) -> list[int]:
    """The bias's shape among the axes of the operator's output."""
    if operator(op.kind).convolution:
        return [-1 if axis == 1 else 1 for axis in range(rank)]
    constant = planner.context.constant(op.inputs[drop.index])
    assert constant is not None
    return [1] * (rank - len(constant.shape)) + list(constant.shape)


def _factor(op: Op, drop: BiasDrop) -> float:
    if op.kind == "Gemm":
        return float(op.attrs.get("beta", 1.0))
    return -1.0 if op.kind == "Sub" and drop.index == 1 else 1.0


def _arrival(
    got: list[np.ndarray], probes: list[np.ndarray]
) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """(index, coefficient) where every channel takes one entry of the bias, else None."""
    if len(got) < len(probes):
        return None
    coefficient = got[0]
    safe = np.where(coefficient == 0, 1.0, coefficient)
    index = np.where(coefficient == 0, 0, np.rint(got[1] / safe) - 1).astype(int)
    if index.min() < 0 or index.max() >= len(probes[0]):
        return None
    if not np.allclose(coefficient * probes[2][index], got[2]):
        return None
    return tuple(int(i) for i in index), tuple(float(c) for c in coefficient)
