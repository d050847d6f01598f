"""Which recurrent modules get BatchNorms inside, and their way in and back out again.

The sites stand beside those of :mod:`bnpass.passes.insert`: the values that they normalise lie
inside of torch's module and are no values of the graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from bnpass.errors import InputError
from bnpass.frontends.fx.apply import apply_edits
from bnpass.frontends.fx.call import to_numpy
from bnpass.frontends.fx.editor import OverflowedError
from bnpass.frontends.fx.hooks import has_hooks
from bnpass.frontends.fx.info import propagate
from bnpass.frontends.fx.inserting import is_turned, new_norm, start
from bnpass.frontends.fx.read import TracedModel, read
from bnpass.frontends.fx.recurrent import NormedRecurrent, norm_name, parts
from bnpass.frontends.fx.tracing import owner, trace
from bnpass.ir.affine import at_channel, infinite_channel
from bnpass.ir.edits import BiasDrop
from bnpass.ir.graph import Op
from bnpass.passes.fold import FoldEntry, plan_fold
from bnpass.passes.initial import new_norms
from bnpass.passes.insert import _Inserter
from bnpass.passes.nonlinear import Nonlinearity, reaches_output
from bnpass.passes.select import selector
from bnpass.passes.sites import InsertPlan, Policy, Site, Skip
from bnpass.statistics.moments import Moments
from bnpass.statistics.torch_engine import moments_of

_KINDS: dict[type[nn.Module], str] = {nn.RNN: "RNN", nn.LSTM: "LSTM", nn.GRU: "GRU"}
_FUNCTIONS = {
    "aten::lstm": "LSTM", "aten::gru": "GRU", "aten::rnn_tanh": "RNN", "aten::rnn_relu": "RNN"
}  # fmt: skip


@dataclass(frozen=True)
class RecurrentPlan:
    """Sites inside of recurrent modules, by the module's path, and those that get none."""

    sites: dict[str, list[Site]] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)

    def without(self, policy: Policy) -> Policy:
        """A policy for the rest of the graph."""
        names = (*self.sites, *(s.node for s in self.skipped))
        return replace(policy, skip=(*policy.skip, *names)) if names else policy

    def joined(self, plan: InsertPlan) -> InsertPlan:
        """Both plans as one."""
        names = {*self.sites, *(s.node for s in self.skipped)}
        others = [s for s in plan.skipped if s.node not in names]
        found = plan.nonlinearities - (len(plan.skipped) - len(others)) + len(names)
        sites = plan.sites + [site for sites in self.sites.values() for site in sites]
        return InsertPlan(sites, others + self.skipped, found, plan.notes)


# --- which ---------------------------------------------------------------------------------------


def plan_recurrent(reading: TracedModel, policy: Policy) -> RecurrentPlan:
    """The recurrent modules that a graph calls, and what becomes of each."""
    plan = RecurrentPlan()
    found = [(node, kind) for node in reading.gm.graph.nodes if (kind := _kind(reading, node))]
    if not found:
        return plan
    last, inserter = reaches_output(reading.graph), _Inserter(reading.graph, policy)
    uses = _uses(reading.gm)
    for node, kind in found:
        name = str(node.target) if node.op == "call_module" else node.name
        op = Op(name, kind, [], [])
        reason = inserter.unwanted(Nonlinearity(op, (), frozenset([name]), kind), last)
        reason = reason or _refusal(reading, node, uses)
        if not reason:
            plan.sites[name] = _sites(name, kind, reading.gm.get_submodule(name))
        elif all(skip.node != name for skip in plan.skipped):
            plan.skipped.append(Skip(name, kind, reason))
    return plan


def _kind(reading: TracedModel, node: fx.Node) -> str:
    if node.op != "call_module":
        schema = getattr(node.target, "_schema", None)
        return _FUNCTIONS.get(schema.name, "") if schema is not None else ""
    module = reading.gm.get_submodule(str(node.target))
    if isinstance(module, NormedRecurrent):
        return module.kind
    return next((kind for cls, kind in _KINDS.items() if isinstance(module, cls)), "")


Uses = tuple[dict[int, int], dict[int, int]]
"""How often a module is called and a parameter held, by the object's id."""


def _uses(gm: fx.GraphModule) -> Uses:
    calls: dict[int, int] = {}
    held: dict[int, int] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            key = id(gm.get_submodule(str(node.target)))
            calls[key] = calls.get(key, 0) + 1
        elif node.op == "get_attr":
            home, _, leaf = str(node.target).rpartition(".")
            key = id(getattr(gm.get_submodule(home), leaf))
            held[key] = held.get(key, 0) + 1
    for module in gm.modules():
        for parameter in module._parameters.values():
            held[id(parameter)] = held.get(id(parameter), 0) + 1
    return calls, held


def _refusal(reading: TracedModel, node: fx.Node, uses: Uses) -> str:
    if node.op != "call_module":
        return "torch.export has taken the module apart"
    module = reading.gm.get_submodule(str(node.target))
    if isinstance(module, NormedRecurrent):
        return "already normalised by BatchNorms of its own"
    if parametrize.is_parametrized(module):
        return "its weights are parametrized"
    if type(module) not in _KINDS or "forward" in vars(module):
        return f"{type(module).__name__} may compute something else than torch's own module"
    if has_hooks(module) or module._forward_pre_hooks:
        return "its forward hooks would be lost"
    if uses[0][id(module)] > 1:
        return "it is called more than once: its calls would share their statistics"
    if any(uses[1][id(p)] > 1 for p in module.parameters()):
        return "other layers use its weights too"
    return ""


def _sites(path: str, kind: str, module: nn.Module) -> list[Site]:
    return [_site(path, kind, module, part) for part in parts(module)]


def _site(path: str, kind: str, module: Any, part: str) -> Site:
    name = f"{path}.{norm_name(part)}"
    channels = module.get_parameter(f"weight_ih_{part}").shape[0]
    constant = np.zeros(channels)
    drops: tuple[BiasDrop, ...] = ()
    if module.bias:
        constant = to_numpy(module.get_parameter(f"bias_ih_{part}")).astype(np.float64)
        drops = (BiasDrop(Op(f"{path}.bias_ih_{part}", kind, [], []), 3),)
    return Site(
        name=name,
        value=f"{path}.contribution_{part}",
        axis=2,
        channels=channels,
        rank=3,
        nonlinearities=(path,),
        absorbers=(path,),
        dropped=(path,) if drops else (),
        drops=drops,
        constant=constant,
    )


# --- in ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """The new BatchNorms, by site; they change nothing in eval mode until they are started."""

    norms: list[tuple[Site, nn.Module]]
    eps: float
    momentum: float

    @contextmanager
    def observed(self) -> Iterator[dict[str, Moments]]:
        """Take the moments of the sites' values, without their bias, for a while."""
        moments = {site.value: Moments() for site, _ in self.norms}

        def watch(seen: Moments) -> Any:
            return lambda _, inputs: seen.add(moments_of(inputs[0]))

        with ExitStack() as stack:
            for site, norm in self.norms:
                handle = norm.register_forward_pre_hook(watch(moments[site.value]))
                stack.callback(handle.remove)
            yield moments

    def start(self, init: str, moments: dict[str, Moments]) -> None:
        """Give the BatchNorms the parameters that ``init`` means."""
        plan = InsertPlan([site for site, _ in self.norms])
        norms = new_norms(
            plan, init, epsilon=self.eps, momentum=self.momentum,
            moments=lambda sites: {s.value: _measured(s, moments[s.value]) for s in sites},
        )  # fmt: skip
        for (_, module), norm in zip(self.norms, norms, strict=True):
            start(module, norm)


def _measured(site: Site, seen: Moments) -> tuple[np.ndarray, np.ndarray]:
    if not seen.seen:
        raise InputError(f"no data has reached {site.nonlinearities[0]!r}", "check the data")
    mean, var = seen.pooled
    if not (np.isfinite(mean).all() and np.isfinite(var).all()):
        at = at_channel(infinite_channel(mean + var))
        raise InputError(f"the statistics of {site.value!r} are not finite{at}", "check the data")
    return mean + site.constant, var


def split(
    gm: fx.GraphModule, plan: RecurrentPlan, *, eps: float, momentum: float, sync: bool
) -> Placed:
    """Put a NormedRecurrent in the place of every chosen module; the outputs stay the same."""
    placed: list[tuple[Site, nn.Module]] = []
    for path, sites in plan.sites.items():
        module: Any = gm.get_submodule(path)
        weight = module.weight_hh_l0
        norms = []
        for norm in new_norms(InsertPlan(sites), "preserve", epsilon=eps, momentum=momentum):
            made = new_norm(norm, sync, is_turned(norm))
            norms.append(made.to(dtype=weight.dtype, device=weight.device))
            start(norms[-1], norm)
            norms[-1].train(gm.training)
        owner(gm, path).add_module(path.rpartition(".")[2], NormedRecurrent(module, norms))
        placed += zip(sites, norms, strict=True)
    return Placed(placed, eps, momentum)


# --- out -----------------------------------------------------------------------------------------


def join(
    gm: nn.Module, *, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()
) -> list[FoldEntry]:
    """Turn every NormedRecurrent back into torch's module, in place; what became of its norms."""
    selected = selector(only, skip)
    entries: list[FoldEntry] = []
    done: dict[nn.Module, nn.Module] = {}
    for path, module in list(gm.named_modules(remove_duplicate=False)):
        if not isinstance(module, NormedRecurrent):
            continue
        if module not in done:
            names = {part: f"{path}.{norm_name(part)}" for part in module.parts}
            if not all(selected(Op(n, "BatchNormalization", [], [])) for n in names.values()):
                continue
            reasons, layers = _folded(module)
            entries += [_entry(name, path, reasons) for name in names.values()]
            if reasons:
                continue
            done[module] = _plain(module, layers)
        owner(gm, path).add_module(path.rpartition(".")[2], done[module])
    return entries


def _entry(name: str, path: str, reasons: dict[str, str]) -> FoldEntry:
    if not reasons:
        return FoldEntry(name, "BatchNormalization", (name,), "backward", (path,))
    part, first = next(iter(reasons.items()))
    own = reasons.get(name.rpartition(norm_name(""))[2])
    reason = own or f"{norm_name(part)} beside it cannot fold: {first}"
    return FoldEntry(name, "BatchNormalization", (name,), "", (), reason)


def _folded(module: NormedRecurrent) -> tuple[dict[str, str], dict[str, nn.Linear]]:
    """Why some norms cannot fold, and W_ih and b_ih of every part with its norm in them."""
    reasons: dict[str, str] = {}
    layers: dict[str, nn.Linear] = {}
    if has_hooks(module):
        return dict.fromkeys(module.parts, "its forward hooks may change what it computes"), {}
    for part in module.parts:
        norm = module.get_submodule(norm_name(part))
        made = _fold_pair(module.get_parameter(f"weight_ih_{part}"), norm)
        if isinstance(made, str):
            reasons[part] = made
        else:
            layers[part] = made
    return reasons, layers


def _fold_pair(weight: nn.Parameter, norm: nn.Module) -> nn.Linear | str:
    """The same rules as for any Linear with a BatchNorm behind it."""
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=False, device="meta")
    linear.weight = weight
    pair = nn.Sequential(OrderedDict(ih=linear, bn=norm))
    pair.training = False
    gm = trace(pair)
    propagate(gm, (weight.new_zeros(2, inputs),))
    reading = read(gm)
    plan = plan_fold(reading.graph)
    if plan.refused or not plan.folded:
        return plan.entries[0].reason if plan.entries else "nobody knows what its norm computes"
    try:
        apply_edits(reading, plan.edits)
    except OverflowedError:
        return "the new weights would not be finite numbers"
    folded = gm.get_submodule("ih")
    assert isinstance(folded, nn.Linear)
    return folded


def _plain(module: NormedRecurrent, layers: dict[str, nn.Linear]) -> nn.RNNBase:
    """Torch's own module with these input weights and biases; missing biases are zeros."""
    weight = module.get_parameter("weight_hh_l0")
    options: dict[str, Any] = {
        "bias": module.bias or any(layer.bias is not None for layer in layers.values()),
        "num_layers": module.num_layers, "bidirectional": module.bidirectional,
        "batch_first": module.batch_first, "dtype": weight.dtype, "device": "meta",
    }  # fmt: skip
    if module.kind == "LSTM":
        options["proj_size"] = module.proj_size
    if module.kind == "RNN":
        options["nonlinearity"] = module.mode.partition("_")[2].lower()
    # made on "meta", so that torch draws no random numbers
    plain = getattr(nn, module.kind)(module.input_size, module.hidden_size, **options)
    plain = plain.to_empty(device=weight.device)
    plain.dropout = module.dropout
    own: dict[str, Any] = dict(module.named_parameters(recurse=False))
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            role, part = name[:7], name.partition("_l")[2]
            layer = layers[f"l{part}"]
            values = own.get(name)
            if name.startswith("weight_ih"):
                values = layer.weight
            elif role == "bias_ih":
                values = layer.bias
            parameter.copy_(values) if values is not None else parameter.zero_()
            parameter.requires_grad = own[name].requires_grad if name in own else True
    plain.flatten_parameters()
    assert isinstance(plain, nn.RNNBase)
    return plain.train(module.training)
