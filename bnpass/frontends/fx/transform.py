"""Whole passes on torch modules: trace, read, plan, apply. The module given is never changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from bnpass.errors import RefusedError
from bnpass.frontends.fx.apply import apply_edits, planned_weights
from bnpass.frontends.fx.collapsing import (
    apply_collapse,
    collapse_graph,
    drop_checks,
    planned_collapse,
)
from bnpass.frontends.fx.copying import check_module, duplicate, unwrapped
from bnpass.frontends.fx.draft import Draft
from bnpass.frontends.fx.editor import OverflowedError
from bnpass.frontends.fx.folding import ModuleFoldOptions, fold_in, strip_in
from bnpass.frontends.fx.growth import copies, room_of, tie_again, ties, without_growth
from bnpass.frontends.fx.hooks import bake
from bnpass.frontends.fx.info import propagate
from bnpass.frontends.fx.inputs import Example, example_of, is_remembered, recalled
from bnpass.frontends.fx.inserting import apply_insert, place_of
from bnpass.frontends.fx.module_insert import ModuleInsertOptions, insert_into
from bnpass.frontends.fx.read import TracedModel, read
from bnpass.frontends.fx.recurrent import inner_norms, lint_norm
from bnpass.frontends.fx.recurrent_plan import join, plan_recurrent, split
from bnpass.frontends.fx.tracing import mode, trace
from bnpass.passes.collapse import CollapsePlan, as_folds
from bnpass.passes.fold import FoldPlan, overflows, plan_fold
from bnpass.passes.initial import new_norms
from bnpass.passes.insert import plan_insert
from bnpass.passes.inspect import Inspection, inspect_graph
from bnpass.passes.sites import InsertPlan, Policy, Site
from bnpass.passes.strip import plan_strip

Model = nn.Module | torch.export.ExportedProgram
Inputs = Any  # a tuple, a tensor, a mapping, or None


def _ready(model: Model, example_inputs: Inputs) -> fx.GraphModule:
    gm = trace(model)
    propagate(gm, example_inputs)
    return gm


@contextmanager
def _settled() -> Iterator[None]:
    """Without autocast and inference mode around: what is made can be trained, in its own type."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _is_graph(model: Model) -> bool:
    """Whether a model is a graph as it is given: it is edited as one, and stays one."""
    if isinstance(model, fx.GraphModule):
        return not is_remembered(model)  # else the graph is one forward that bnpass has rewritten
    return isinstance(model, torch.export.ExportedProgram)


def _example(model: nn.Module, inputs: Any) -> Example:
    return recalled(model) if inputs is None else example_of(inputs)


def _module(model: Any) -> nn.Module:
    return check_module(unwrapped(check_module(model)))


def _check_mode(model: Model) -> None:
    exported = "train" in vars(model)  # torch.export's modules have a mode of their own each
    if isinstance(model, nn.Module) and model.training and not exported:
        raise RefusedError(
            f"{type(model).__name__} is in train mode: its BatchNorms use the batch's statistics",
            "call .eval() first (and bnpass.calibrate for the statistics of the population)",
        )


@_settled()
def fx_fold(
    model: Model,
    example_inputs: Inputs = None,
    *,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    leftover: str = "bn",
    training_mode: str = "refuse",
    max_growth: float = 4.0,
    fold_norms: bool = False,
    collapse: str = "bn",
    plan_only: bool = False,
) -> nn.Module | FoldPlan:
    """Fold every per-channel affine map of a torch module; see :func:`bnpass.fold`.

    Weights keep their type and device; each is rounded once. A module that is called twice, or a
    weight that others read too, is cloned where the calls need different ones; parametrized
    weights (weight_norm ...) become plain.

    Args:
        model: in eval mode.
        example_inputs: a tuple of what ``forward`` takes; not needed for what ``insert`` made.
        only, skip: glob patterns on operator names (paths of modules, names of nodes).
        leftover: what a chain becomes that cannot fold: ``bn``, or ``affine``.
        training_mode: ``inference``: take it as if it were in eval mode.
        max_growth: how many times its tensors may take their bytes where shared ones are cloned;
            what would need more stays.
        fold_norms: gamma and beta of norms that are spelt out may leave, too.
        collapse: linear regions that become one layer first: ``bn``, ``all`` or ``none``.
        plan_only: return the plan and change nothing.

    Raises:
        RefusedError: the module is in train mode.
        InputError, UnsupportedError: it cannot be traced, or its shapes cannot be found.
    """
    if not isinstance(model, torch.export.ExportedProgram):
        model = _module(model)
    if training_mode != "inference":
        _check_mode(model)
    if not _is_graph(model):
        assert isinstance(model, nn.Module)
        options = ModuleFoldOptions(
            only, skip, leftover, training_mode, fold_norms, max_growth, collapse
        )
        folded, plan = fold_in(model, _example(model, example_inputs), options)
        return plan if plan_only else folded
    avoid: dict[str, str] = {}
    while True:
        gm = _ready(model, example_inputs)
        if training_mode == "inference":
            gm.eval()
        bake(gm)
        joined = join(gm, only=only, skip=skip)
        reading = read(gm)
        regions = collapse_graph(reading, mode=collapse, only=only, skip=skip)
        if any(region.into for region in regions):
            joined += as_folds(regions)
            reading = read(gm)
        plan = plan_fold(
            reading.graph,
            only=only,
            skip=skip,
            leftover=leftover,
            avoid=avoid,
            fold_norms=fold_norms,
        )
        plan.entries[:0] = joined
        planned = planned_weights(reading, plan.edits)
        if grown := room_of(gm, max_growth).too_large(copies(reading, planned)):
            avoid |= grown
            continue
        tied = ties(gm)
        try:
            apply_edits(reading, plan.edits, planned)
        except OverflowedError as error:
            avoid[error.op] = overflows(error.op, error.channel)
            continue
        tie_again(gm, tied)
        return plan if plan_only else gm


@_settled()
def fx_insert(
    model: Model,
    example_inputs: Inputs = None,
    *,
    policy: Policy | None = None,
    init: str = "fresh",
    data: Any = None,
    eps: float = 1e-5,
    momentum: float = 0.1,
    sync: bool = False,
    max_growth: float = 4.0,
    plan_only: bool = False,
) -> nn.Module | InsertPlan:
    """Insert a BatchNorm in front of every nonlinearity; see :func:`bnpass.insert`.

    New modules are torch's own, named after the layer in front (``conv1`` -> ``conv1_bn``); where
    the channels are the last of more than two axes they stand between two ``movedim``. An old
    state_dict loads into the result: a bias that was dropped moves into beta. Recurrent modules
    become :class:`~bnpass.frontends.fx.recurrent.NormedRecurrent`, at the same paths.

    Args:
        model: in either mode; the result is in the same.
        example_inputs: a tuple of what ``forward`` takes.
        policy: which nonlinearities; by default all but gates and the last ones.
        init, data, eps, momentum: see :func:`bnpass.insert`.
        sync: insert SyncBatchNorm, for DistributedDataParallel.
        max_growth: none goes where its fold would clone shared tensors until all take more than
            so many times their bytes.
        plan_only: return the plan and change nothing.
    """
    from bnpass.frontends.fx.loading import find_arrivals, install
    from bnpass.frontends.fx.moments import measure

    policy = policy or Policy()
    if not isinstance(model, torch.export.ExportedProgram):
        model = _module(model)
    if not _is_graph(model):
        assert isinstance(model, nn.Module)
        options = ModuleInsertOptions(init, data, eps, momentum, sync, max_growth)
        example = _example(model, example_inputs)
        return insert_into(model, example, policy, options, plan_only=plan_only)
    gm = _ready(model, example_inputs)
    with mode(gm, False):
        reading = read(gm)
    layers = plan_recurrent(reading, policy)
    plan = _realizable(reading, layers.without(policy))
    plan = without_growth(reading, plan, room_of(gm, max_growth))
    if plan_only:
        return layers.joined(plan)
    inner = split(gm, layers, eps=eps, momentum=momentum, sync=sync)
    moments = None
    if init == "calibrated":
        moments = lambda sites: measure(gm, reading, sites, data)  # noqa: E731
    with inner.observed() as seen:
        norms = new_norms(plan, init, epsilon=eps, momentum=momentum, moments=moments)
    inner.start(init, seen)
    arrivals = find_arrivals(reading, plan)
    paths = apply_insert(reading, norms, sync=sync)
    install(gm, arrivals, paths, eps)
    return gm


def _realizable(reading: TracedModel, policy: Policy) -> InsertPlan:
    """A plan whose sites are values that nodes make, not steps inside of a node."""
    while True:
        plan = plan_insert(reading.graph, policy)
        inside = [s for s in plan.sites if not _is_node(reading, s)]
        if not inside:
            return plan
        names = tuple(n for s in inside for n in s.nonlinearities)
        policy = Policy(**{**vars(policy), "skip": (*policy.skip, *names)})


def _is_node(reading: TracedModel, site: Site) -> bool:
    if place_of(reading, site.value) is None:
        return False
    return all(op.name in reading.nodes for op in site.clones)


@_settled()
def fx_strip(
    model: Model,
    what: Sequence[str] = ("lrn", "dropout"),
    example_inputs: Inputs = None,
    *,
    dropout: float | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> nn.Module:
    """Take out LRN and Dropout, or give every Dropout another ratio; see :func:`bnpass.strip`."""
    if not isinstance(model, torch.export.ExportedProgram):
        model = _module(model)
    if not _is_graph(model):
        assert isinstance(model, nn.Module)
        options: dict[str, Any] = {"what": what, "dropout": dropout, "only": only, "skip": skip}
        return strip_in(model, _example(model, example_inputs), **options)
    gm = _ready(model, example_inputs)
    with mode(gm, False):
        reading = read(gm)
        plan = plan_strip(reading.graph, what, dropout=dropout, only=only, skip=skip)
    apply_edits(reading, plan.edits)
    return gm


@_settled()
def fx_inspect(model: Model, example_inputs: Inputs = None) -> Inspection:
    """What is in a torch module, as inference sees it; see :func:`bnpass.inspect`."""
    gm: Any
    if _is_graph(model):
        gm = _ready(model, example_inputs)
        with mode(gm, False):
            graph = read(gm).graph
    else:
        draft = Draft(duplicate(_module(model)), _example(_module(model), example_inputs))
        graph, gm = draft.look().graph, draft.root
    with mode(gm, False):
        found = replace(inspect_graph(graph), parameters=sum(p.numel() for p in gm.parameters()))
        inner = inner_norms(gm)
        found.folds.entries.extend(join(gm))
    for path, norm in inner.items():
        found.findings.extend(lint_norm(path, norm))
    if inner:
        found.operators["BatchNormalization"] = found.norms + len(inner)
    return found


def fx_collapse(
    model: Model,
    example_inputs: Inputs = None,
    *,
    mode: str = "all",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    plan_only: bool = False,
) -> fx.GraphModule | CollapsePlan:
    """Turn linear branches of a torch module into single layers; see :func:`bnpass.collapse`.

    Args:
        model: in eval mode.
        example_inputs: a tuple of what ``forward`` takes.
        mode: ``all``, or ``bn``: only regions with a BatchNorm in them.
        only, skip: glob patterns on operator names (paths of modules, names of nodes).
        plan_only: return the plan and change nothing.

    Raises:
        RefusedError: the module is in train mode.
        InputError, UnsupportedError: it cannot be traced, or its shapes cannot be found.
    """
    _check_mode(model)
    gm = _ready(model, example_inputs)
    bake(gm)
    drop_checks(gm)
    reading = read(gm)
    plan = planned_collapse(reading, mode=mode, only=only, skip=skip)
    if plan_only:
        return plan
    apply_collapse(reading, plan.edits)
    return gm
