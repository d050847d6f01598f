"""Linear branches of a user's module become one layer, in the forward that joins them.

The module that reads the root and makes the result (a RepVGG block, say) becomes a GraphModule in
which one new layer stands for the branches; all others stay what they are. Regions that only
torch's own containers join are left: a graph in their place could not be indexed any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from bnpass.frontends.fx.anchors import frame_of, is_once
from bnpass.frontends.fx.collapsing import PART, fits, is_whole, new_layer, padded
from bnpass.frontends.fx.draft import Draft
from bnpass.frontends.fx.normhook import is_norm_hook
from bnpass.frontends.fx.recording import Frame
from bnpass.ir.edits import Collapse
from bnpass.passes.collapse import CollapseEntry, CollapsePlan, plan_collapse


@dataclass(frozen=True)
class _Place:
    """Where a region is replaced: in the GraphModule of a call, between two of its nodes."""

    frame: Frame
    root: fx.Node
    result: fx.Node


def collapse_in(
    draft: Draft, *, mode: str, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> list[CollapseEntry]:
    """Collapse what can be, in place; every region, with the reason where it stays."""
    refused: dict[str, str] = {}
    done: list[CollapseEntry] = []
    while True:
        reading = draft.look()
        plan = plan_collapse(reading.graph, mode=mode, only=only, skip=skip)
        frames = {edit.carrier.name: _home(draft, edit) for edit in plan.edits}
        missing: dict[int, Frame] = {}
        ready: list[tuple[Collapse, _Place]] = []
        for edit in plan.edits:
            home = frames[edit.carrier.name]
            if isinstance(home, str):
                refused[edit.carrier.name] = home
            elif not isinstance(home.module, fx.GraphModule):
                missing[id(home.module)] = home
            else:
                place = _place(draft, home, edit)
                if isinstance(place, str):
                    refused[edit.carrier.name] = place
                else:
                    ready.append((edit, place))
        if ready:
            _apply(draft, ready)
            done += _entries(plan, {edit.carrier.name for edit, _ in ready})
        elif missing:
            draft.rewrite(list(missing.values()))
        else:
            return [*done, *_stay(plan, refused)]


def _entries(plan: CollapsePlan, carriers: set[str]) -> list[CollapseEntry]:
    return [entry for entry in plan.entries if entry.into in carriers]


def _stay(plan: CollapsePlan, refused: dict[str, str]) -> list[CollapseEntry]:
    return [replace(e, into="", reason=refused[e.into]) if e.into else e for e in plan.entries]


def _home(draft: Draft, edit: Collapse) -> Frame | str:
    """The innermost call in whose forward a region's root and result are values; or why none."""
    if not (is_whole(draft.reading, edit) and fits(draft.reading, edit)):
        return PART
    nodes = [draft.reading.nodes[op.name] for op in edit.ops]
    home: Frame | None = frame_of(nodes[0])
    while home is not None and not all(frame_of(node).within(home) for node in nodes):
        home = home.parent
    sources = draft.reading.sources
    while home is not None and not all(
        _is_seen(sources[value], home) for value in (edit.root, edit.result)
    ):
        home = home.parent
    if home is None:
        return "no forward has both its root and its result as values"
    name = f"{type(home.module).__name__} {home.path!r}"
    if not is_once(draft.recording, home):
        return f"{name} is called more than once"
    if type(home.module).__module__.startswith("torch.nn"):
        return f"{name} is a container of torch's own"
    if id(home.module) in draft.refused:
        return draft.refused[id(home.module)]
    return _hooked(draft, nodes, home) or home


def _is_seen(node: fx.Node, home: Frame) -> bool:
    """Whether a value is one of a call's own forward: an argument, a step, a child's result."""
    if any(value is node for value in home.args.values()):
        return True
    frame = _made_by(node)
    while frame is not None and frame is not home:
        if frame.output is not node:
            return False
        frame = frame.parent
    return frame is home


def _made_by(node: fx.Node) -> Frame | None:
    frame = node.meta.get("bnpass_frame")
    return frame if isinstance(frame, Frame) else None


def _hooked(draft: Draft, nodes: list[fx.Node], home: Frame) -> str:
    """Why the modules of a region cannot go: somebody's hook hangs on one of them."""
    inner = {id(f): f for node in nodes for f in _up_to(frame_of(node), home)}
    inner |= {id(f): f for f in draft.recording.frames if f.node in nodes}
    for frame in inner.values():
        held: list[Any] = [*frame.module._forward_hooks.values(),
                           *frame.module._forward_pre_hooks.values(),
                           *frame.module._backward_hooks.values()]  # fmt: skip
        if any(not is_norm_hook(hook) for hook in held):
            return f"a hook hangs on {type(frame.module).__name__} {frame.path!r}"
    return ""


def _up_to(frame: Frame | None, home: Frame) -> Iterator[Frame]:
    """A call and those around it, up to another one."""
    while frame is not None and frame is not home:
        yield frame
        frame = frame.parent


def _place(draft: Draft, home: Frame, edit: Collapse) -> _Place | str:
    found = [_own_node(draft, home, draft.reading.sources[v]) for v in (edit.root, edit.result)]
    root, result = found
    if root is None or result is None:
        return f"it is part of a larger step of {type(home.module).__name__} {home.path!r}"
    return _Place(home, root, result)


def _own_node(draft: Draft, home: Frame, node: fx.Node) -> fx.Node | None:
    """The node of a call's own GraphModule whose value this is."""
    if _made_by(node) is home:
        return draft.origin(node)
    for frame in draft.recording.frames:
        if frame.parent is home and frame.output is node and frame.origin is not None:
            return frame.origin
    gm: Any = home.module
    heads = [n for n in gm.graph.nodes if n.op == "placeholder"]
    for key, value in home.args.items():
        if value is node:
            named = [n for n in heads if n.target == key]
            return heads[key] if isinstance(key, int) else named[0] if named else None
    return None


def _apply(draft: Draft, ready: list[tuple[Collapse, _Place]]) -> None:
    """Put the new layers in place of the regions; what only those called goes."""
    moved: dict[fx.Node, fx.Node] = {}
    graphs: dict[int, Any] = {}
    for edit, place in ready:
        gm: Any = place.frame.module
        graphs[id(gm)] = gm
        root = moved.get(place.root, place.root)
        path = _free(gm, edit.carrier.name.rpartition(".")[2])
        gm.add_submodule(path, new_layer(draft.reading, edit))
        with gm.graph.inserting_before(place.result):
            made = gm.graph.call_module(path, (padded(gm.graph, edit, root),))
        place.result.replace_all_uses_with(made)
        moved[place.result] = made
    for gm in graphs.values():
        called = _called(gm)
        gm.graph.eliminate_dead_code()
        for path in called - _called(gm):
            gm.delete_submodule(path)
        gm.recompile()


def _called(gm: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}


def _free(module: nn.Module, name: str) -> str:
    base = name.replace(".", "_")
    path, n = base, 1
    while hasattr(module, path):
        n += 1
        path = f"{base}_{n}"
    return path
