"""Insertion into a user's module: BatchNorms at the anchors of a plan's sites."""

from __future__ import annotations

import glob
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from bnpass.errors import InputError, UnsupportedError
from bnpass.frontends.fx.anchors import Anchor, anchor_of, frame_of
from bnpass.frontends.fx.checking import Reference, culprits, refusal
from bnpass.frontends.fx.copying import BY_RANK, duplicate
from bnpass.frontends.fx.draft import Draft
from bnpass.frontends.fx.editor import ModuleEditor, no_bias
from bnpass.frontends.fx.growth import room_of, without_growth
from bnpass.frontends.fx.inputs import Example, remember
from bnpass.frontends.fx.inserting import (
    drop_argument,
    insert_norm,
    is_turned,
    like_layers,
    new_norm,
    place_of,
    start,
)
from bnpass.frontends.fx.loading import find_arrivals, install
from bnpass.frontends.fx.normhook import attach
from bnpass.frontends.fx.observing import observe
from bnpass.frontends.fx.recording import Frame
from bnpass.frontends.fx.recurrent_plan import Placed, RecurrentPlan, plan_recurrent, split
from bnpass.frontends.fx.tracing import mode
from bnpass.ir.edits import BiasDrop, NewNorm
from bnpass.ir.operators import operator
from bnpass.nn.calls import Feeder, device_of, takes_of
from bnpass.nn.distributed import world
from bnpass.passes.initial import new_norms
from bnpass.passes.insert import plan_insert
from bnpass.passes.sites import InsertPlan, Policy, Site, Skip
from bnpass.statistics.source import Source

log = logging.getLogger("bnpass.torch")


@dataclass(frozen=True)
class ModuleInsertOptions:
    """How an insertion starts its BatchNorms; see :func:`bnpass.insert`."""

    init: str = "fresh"
    data: Any = None
    eps: float = 1e-5
    momentum: float = 0.1
    sync: bool = False
    max_growth: float = 4.0


@dataclass(eq=False)
class Planned:
    """A plan all of whose sites have a place in the draft."""

    draft: Draft
    plan: InsertPlan
    layers: RecurrentPlan
    anchors: dict[str, Anchor]

    @property
    def joined(self) -> InsertPlan:
        """The plan with the sites inside of recurrent modules."""
        return self.layers.joined(self.plan)


def insert_into(
    module: nn.Module, example: Example, policy: Policy, options: ModuleInsertOptions, *,
    plan_only: bool,
) -> nn.Module | InsertPlan:
    """Insert into a copy of a module; see :func:`bnpass.insert`."""
    wanted = Reference.of(duplicate(module), example, (False, True))
    attempt = Attempt(module, example, policy, options, wanted)
    trial = attempt.make({})
    if trial.fault:
        left = attempt.left_out(trial)
        for name, reason in left.items():
            log.warning("no BatchNorm in front of %r: %s", name, reason)
        trial = attempt.make(left)
    if trial.fault:
        raise refusal(trial.fault)
    if plan_only:
        return trial.planned.joined
    if not options.sync and world() > 1:
        log.warning("running statistics of BatchNorms %s; sync=True normalises over all", BY_RANK)
    _start(trial.planned.draft.root, trial.placed, options)
    remember(trial.planned.draft.root, example)
    return trial.planned.draft.root


@dataclass(eq=False)
class Insertion:
    """An insertion that was carried out, and what is wrong with it; mostly nothing."""

    planned: Planned
    placed: Placed
    fault: str


@dataclass(eq=False)
class Attempt:
    """Insertions into fresh copies of one module, with some sites left out."""

    module: nn.Module
    example: Example
    policy: Policy
    options: ModuleInsertOptions
    wanted: Reference

    def make(self, banned: dict[str, str]) -> Insertion:
        """Insert everywhere but in front of some nonlinearities, which are given with reasons."""
        draft = Draft(duplicate(self.module), self.example)
        planned = plan_sites(draft, self.policy, self.options.max_growth, banned)
        placed = _apply(planned, self.options)
        still = [norm for _, norm in placed.norms]
        return Insertion(planned, placed, self.wanted.difference(planned.draft.root, still))

    def left_out(self, trial: Insertion) -> dict[str, str]:
        """The nonlinearities whose sites change what the module computes, with what they do."""
        sites = trial.planned.plan.sites
        found = culprits(sites, trial.fault, lambda some: self._only(some, sites))
        return {name: fault for site, fault in found for name in site.nonlinearities}

    def _only(self, some: list[Site], sites: list[Site]) -> str:
        kept = {name for site in some for name in site.nonlinearities}
        others = [name for site in sites for name in site.nonlinearities if name not in kept]
        return self.make(dict.fromkeys(others, "another site is tried")).fault



# --- where ---------------------------------------------------------------------------------------


def plan_sites(
    draft: Draft, policy: Policy, max_growth: float, banned: dict[str, str] | None = None
) -> Planned:
    """Plan, and let forwards become graphs where a site lies inside of one, until all have places.

    A nonlinearity whose site has no place is skipped with the reason, as are ``banned`` ones.
    """
    banned = dict(banned or {})
    while True:
        reading = draft.look()
        layers = plan_recurrent(reading, policy)
        names = tuple(glob.escape(name) for name in banned)
        wanted = layers.without(policy)
        plan = plan_insert(reading.graph, replace(wanted, skip=(*wanted.skip, *names)))
        plan = without_growth(reading, plan, room_of(draft.root, max_growth))
        frames: dict[int, Frame] = {}
        reasons: dict[str, str] = {}
        anchors: dict[str, Anchor] = {}
        for site in plan.sites:
            anchor = _anchor(draft, site)
            if isinstance(anchor, str):
                reasons.update(dict.fromkeys(site.nonlinearities, anchor))
                continue
            anchors[site.name] = anchor
            for node in _inside(draft, plan, site, anchor):
                if draft.is_editable(node):
                    continue
                reason = draft.obstacle(node)
                if reason:
                    reasons.update(dict.fromkeys(site.nonlinearities, reason))
                frames[id(frame_of(node).module)] = frame_of(node)
        if not reasons and not frames:
            reasons = _other_in_training(draft, plan, anchors)
            if not reasons:
                return Planned(draft, _told(plan, banned, draft), layers, anchors)
        banned.update(reasons)
        if not reasons:
            draft.rewrite(list(frames.values()))


def _told(plan: InsertPlan, banned: dict[str, str], draft: Draft) -> InsertPlan:
    skipped = [Skip(s.node, s.kind, banned.get(s.node, s.reason)) for s in plan.skipped]
    notes = [f"forward of {path or 'the module itself'!r} became a graph: a BatchNorm stands in it"
             for path in draft.rewritten]  # fmt: skip
    return replace(plan, skipped=skipped, notes=[*plan.notes, *notes])


def _anchor(draft: Draft, site: Site) -> Anchor | str:
    """Where a site's norm goes; a reason where there is no place."""
    node = place_of(draft.reading, site.value)
    if node is None or node.op in ("placeholder", "get_attr"):
        return "the value in front of it is a step inside of a node"
    if any(draft.reading.nodes.get(op.name) is None for op in site.clones):
        return "a layer to duplicate is a step inside of a node"
    if site.readers is not None:
        return Anchor(frame_of(node), "c", node)
    return anchor_of(draft.recording, node)


def _inside(draft: Draft, plan: InsertPlan, site: Site, anchor: Anchor) -> list[fx.Node]:
    """Nodes that have to be nodes of a GraphModule for a site to have its place."""
    found = [anchor.node] if anchor.kind == "c" else []
    names = [op.name for op in site.clones]
    found += [draft.reading.nodes[name] for name in names]
    found += [draft.reading.origins[name] for name in site.readers or ()]
    for drop in site.drops:
        node = draft.reading.nodes[drop.op.name]
        if drop.whole or not _drops_in_place(draft, plan, drop):
            found.append(node)
    return found


def _drops_in_place(draft: Draft, plan: InsertPlan, drop: BiasDrop) -> bool:
    """Whether a bias can go by taking it from the module that holds it."""
    node = draft.reading.nodes[drop.op.name]
    slot = draft.reading.slots[drop.op.name, drop.index]
    if slot.module:
        dropped = {draft.reading.nodes[d.op.name] for s in plan.sites for d in s.drops}
        module = draft.recording.gm.get_submodule(slot.module)
        return all(f.node in dropped for f in draft.recording.calls[id(module)])
    path = draft.reading.attributes.get(drop.op.input(drop.index), "")
    home, _, leaf = path.rpartition(".")
    value = next((n for n in node.all_input_nodes if n.op == "get_attr" and n.target == path), None)
    own = frame_of(node).path == home and leaf in frame_of(node).module._parameters
    named = slot.name == "bias" and operator(drop.op.kind).bias is not None
    return own and named and value is not None and list(value.users) == [node]


def _other_in_training(
    draft: Draft, plan: InsertPlan, anchors: dict[str, Anchor]
) -> dict[str, str]:
    """Sites at modules that training mode calls again, or whose values it hands out."""
    try:
        live = observe(draft.root, draft.example, training=True)
    except (InputError, UnsupportedError):
        return {}
    handed = {n for node in live.gm.graph.nodes if node.op == "output" for n in node.args[0]}
    reasons: dict[str, str] = {}
    for site in plan.sites:
        anchor = anchors[site.name]
        calls = live.calls.get(id(anchor.frame.module), [])
        if anchor.kind == "c" or not calls:
            continue
        reason = ""
        if len(calls) > 1:
            reason = f"{anchor.frame.path!r} is called more than once in training mode"
        elif anchor.kind == "a" and calls[0].output in handed:
            reason = f"training mode returns what {anchor.frame.path!r} makes"
        if reason:
            reasons.update(dict.fromkeys(site.nonlinearities, reason))
    return reasons


# --- what ----------------------------------------------------------------------------------------


def _apply(planned: Planned, options: ModuleInsertOptions) -> Placed:
    """Insert all norms so that they change nothing in eval mode yet, and drop the biases."""
    draft, plan = planned.draft, planned.plan
    norms = new_norms(plan, "preserve", epsilon=options.eps, momentum=options.momentum)
    arrivals = find_arrivals(draft.reading, plan)
    weights = {site.name: draft.weights(site.absorbers) for site in plan.sites}
    settings = {"eps": options.eps, "momentum": options.momentum, "sync": options.sync}
    inner = split(draft.root, planned.layers, **settings)  # type: ignore[arg-type]
    editors: dict[int, tuple[Frame, ModuleEditor]] = {}
    paths: dict[str, str] = {}
    for site, norm in zip(plan.sites, norms, strict=True):
        anchor = planned.anchors[site.name]
        if anchor.kind == "c":
            editor = _editor(draft, editors, anchor.frame)
            place = draft.origin(anchor.node)
            assert place is not None
            made = insert_norm(editor, norm, place, options.sync, weights[site.name])
        else:
            made = _attach(draft, anchor, norm, options.sync, weights[site.name])
        paths[site.name] = f"{anchor.frame.path}.{made}".lstrip(".")
    _drop_biases(draft, plan, editors)
    for _, editor in editors.values():
        editor.finish()
    install(draft.root, arrivals, paths, options.eps)
    placed = [(site, draft.root.get_submodule(paths[site.name])) for site in plan.sites]
    return Placed([*placed, *inner.norms], options.eps, options.momentum)


def _editor(
    draft: Draft, editors: dict[int, tuple[Frame, ModuleEditor]], frame: Frame
) -> ModuleEditor:
    if id(frame.module) not in editors:
        editors[id(frame.module)] = frame, ModuleEditor(draft.projected(frame))
    return editors[id(frame.module)][1]


def _attach(
    draft: Draft, anchor: Anchor, norm: NewNorm, sync: bool, weights: list[torch.Tensor]
) -> str:
    module = draft.root.get_submodule(anchor.frame.path)
    made = like_layers(new_norm(norm, sync, is_turned(norm)), weights, module)
    start(made, norm)
    return attach(module, made, key=anchor.key, last=is_turned(norm))


def _drop_biases(
    draft: Draft, plan: InsertPlan, editors: dict[int, tuple[Frame, ModuleEditor]]
) -> None:
    reading = draft.reading
    drops = {(d.op.name, d.index): d for site in plan.sites for d in site.drops}
    shared: dict[tuple[int, str], list[fx.Node]] = {}
    for drop in drops.values():
        node = reading.nodes[drop.op.name]
        frame = frame_of(node)
        slot = reading.slots[drop.op.name, drop.index]
        if drop.whole:
            _editor(draft, editors, frame).remove(drop.op, drop.data)
        elif slot.module and _drops_in_place(draft, plan, drop):
            no_bias(draft.root.get_submodule(slot.module))
        elif slot.module:
            shared.setdefault((id(frame.module), slot.module), []).append(node)
        elif draft.is_editable(node):
            editor = _editor(draft, editors, frame)
            drop_argument(editor.reading.slots[drop.op.name, drop.index])
        else:
            frame.module.register_parameter(slot.name, None)
    for (_, path), nodes in shared.items():
        editor = _editor(draft, editors, frame_of(nodes[0]))
        origins = [n for n in map(draft.origin, nodes) if n is not None]
        del path
        editor.drop_bias(str(origins[0].target), origins, keep=True)


def _start(root: nn.Module, placed: Placed, options: ModuleInsertOptions) -> None:
    """Give the norms the parameters that ``init`` means, with the data's statistics if wanted."""
    with placed.observed() as seen:
        if options.init == "calibrated":
            _feed(root, options.data)
    placed.start(options.init, seen)


def _feed(root: nn.Module, data: Any) -> None:
    source = Source(data, takes_of(root))
    if source.empty:
        raise InputError("no data to take population statistics from", "the loader is empty")
    feeder = Feeder(root, device_of(root))
    with mode(root, False), torch.no_grad():
        for batch in source.batches(_BATCH):
            call = feeder(batch)
            root(*call.args, **call.kwargs)


_BATCH = 256  # samples at a time: the new BatchNorms change nothing yet, so the size is free
