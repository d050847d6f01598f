"""Linear regions of a GraphModule become single modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bnpass.frontends.fx.info import META
from bnpass.frontends.fx.read import TracedModel
from bnpass.ir.edits import Collapse
from bnpass.ir.graph import Op
from bnpass.passes.collapse import CollapseEntry, CollapsePlan, plan_collapse

PART = "it is part of a larger step of the module, or would overflow"
_CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def collapse_graph(
    reading: TracedModel, *, mode: str, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> list[CollapseEntry]:
    """Collapse what can be in a reading's module, in place; every region."""
    plan = planned_collapse(reading, mode=mode, only=only, skip=skip)
    if plan.edits:
        apply_collapse(reading, plan.edits)
    return plan.entries


def planned_collapse(
    reading: TracedModel, *, mode: str, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> CollapsePlan:
    """What collapses: regions of whole nodes, whose numbers fit the weights' own type."""
    plan = plan_collapse(reading.graph, mode=mode, only=only, skip=skip)
    edits = [edit for edit in plan.edits if is_whole(reading, edit) and fits(reading, edit)]
    kept = {edit.carrier.name for edit in edits}
    entries = [replace(e, into="", reason=PART) if e.into and e.into not in kept else e
               for e in plan.entries]  # fmt: skip
    return CollapsePlan(entries, edits)


def is_whole(reading: TracedModel, edit: Collapse) -> bool:
    """Whether a region's operators, its root and its result are nodes and their values."""
    known = {edit.root, edit.result} <= reading.sources.keys()
    return known and all(op.name in reading.nodes for op in edit.ops)


def fits(reading: TracedModel, edit: Collapse) -> bool:
    """Whether the new numbers are finite in the weights' own type."""
    arrays = [a for a in (edit.weight, edit.bias) if a is not None]
    return all(bool(torch.isfinite(_like(reading, edit.carrier, a)).all()) for a in arrays)


def apply_collapse(reading: TracedModel, edits: Sequence[Collapse]) -> None:
    """Change a reading's module in place.

    Args:
        reading: the module with its view.
        edits: of :func:`planned_collapse`.
    """
    graph = reading.gm.graph
    for edit in edits:
        end, root = reading.sources[edit.result], reading.sources[edit.root]
        module = new_layer(reading, edit)
        path = _place(reading, edit, module)
        with graph.inserting_before(end):
            made = graph.call_module(path, (padded(graph, edit, root),))
        made.meta[META] = end.meta.get(META)
        end.replace_all_uses_with(made)
        for op in reversed(edit.ops):
            node = reading.nodes[op.name]
            if not node.users:
                graph.erase_node(node)
    graph.eliminate_dead_code()
    reading.gm.delete_all_unused_submodules()
    reading.gm.recompile()


def drop_checks(gm: fx.GraphModule) -> None:
    """Take assertions out of a graph: what they read would have to stay as it is."""
    for node in list(gm.graph.nodes):
        if node.target is torch._assert:
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _like(reading: TracedModel, carrier: Op, array: np.ndarray) -> torch.Tensor:
    """Numbers in the type of a layer's weight, where it lives."""
    dtype = reading.graph.dtype(carrier.inputs[1]) or "float32"
    parameter = next((p for p in reading.gm.parameters()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    tensor = torch.as_tensor(np.ascontiguousarray(array))
    return tensor.to(dtype=getattr(torch, dtype), device=device)


def new_layer(reading: TracedModel, edit: Collapse) -> nn.Module:
    """The module that a region becomes, in the mode of the whole."""
    weight = _like(reading, edit.carrier, edit.weight)
    has_bias = edit.bias is not None
    module: Any
    if edit.kind == "Conv":
        attrs, axes = edit.attrs, edit.weight.ndim - 2
        pads = attrs["pads"][:axes] if _is_even(edit) else [0] * axes
        out, inputs = weight.shape[0], weight.shape[1] * attrs["group"]
        module = _CONVS[axes](inputs, out, tuple(attrs["kernel_shape"]), tuple(attrs["strides"]),
                              tuple(pads), tuple(attrs["dilations"]), attrs["group"], has_bias)
    else:
        weight = weight if edit.kind == "Gemm" else weight.T.contiguous()
        module = nn.Linear(weight.shape[1], weight.shape[0], has_bias)
    module.weight = nn.Parameter(weight)
    if edit.bias is not None:
        module.bias = nn.Parameter(_like(reading, edit.carrier, edit.bias))
    made: nn.Module = module.train(reading.gm.training)
    return made


def _is_even(edit: Collapse) -> bool:
    """Whether a convolution is padded as much at the begin as at the end of each axis."""
    pads, axes = edit.attrs["pads"], edit.weight.ndim - 2
    return list(pads[:axes]) == list(pads[axes:])


def padded(graph: fx.Graph, edit: Collapse, root: fx.Node) -> fx.Node:
    """The root, with zeros around it where the module cannot put them there."""
    if edit.kind != "Conv" or _is_even(edit):
        return root
    pads, axes = edit.attrs["pads"], edit.weight.ndim - 2
    flat = [n for a in reversed(range(axes)) for n in (pads[a], pads[a + axes])]
    return graph.call_function(torch.nn.functional.pad, (root, flat))


def _place(reading: TracedModel, edit: Collapse, module: nn.Module) -> str:
    """Put a module where the carrier was, or beside everything else; its path."""
    node = reading.nodes[edit.carrier.name]
    path = str(node.target).replace(".", "_") if node.op == "call_module" else node.name
    if node.op == "call_module":
        calls = [n for n in reading.gm.graph.nodes if n.target == node.target]
        if len(calls) == 1:
            reading.gm.add_submodule(str(node.target), module)
            return str(node.target)
    taken, n = path, 1
    while hasattr(reading.gm, taken):
        taken, n = f"{path}_{n}", n + 1
    reading.gm.add_submodule(taken, module)
    return taken
