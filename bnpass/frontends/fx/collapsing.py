"""Linear regions of a GraphModule become single modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bnpass.frontends.fx.info import META
from bnpass.frontends.fx.read import TracedModel
from bnpass.ir.edits import Collapse
from bnpass.ir.graph import Op

_CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def applicable(reading: TracedModel, edits: Sequence[Collapse]) -> list[Collapse]:
    """The edits whose operators are whole nodes, and whose numbers fit the weights' own type."""
    return [edit for edit in edits if _is_whole(reading, edit) and _fits(reading, edit)]


def _is_whole(reading: TracedModel, edit: Collapse) -> bool:
    known = {edit.root, edit.result} <= reading.sources.keys()
    return known and all(op.name in reading.nodes for op in edit.ops)


def _fits(reading: TracedModel, edit: Collapse) -> bool:
    arrays = [a for a in (edit.weight, edit.bias) if a is not None]
    return all(bool(torch.isfinite(_like(reading, edit.carrier, a)).all()) for a in arrays)


def apply_collapse(reading: TracedModel, edits: Sequence[Collapse]) -> None:
    """Change a reading's module in place.

    Args:
        reading: the module with its view.
        edits: those that :func:`applicable` returned.
    """
    graph = reading.gm.graph
    for edit in edits:
        end, root = reading.sources[edit.result], reading.sources[edit.root]
        module = _module(reading, edit)
        path = _place(reading, edit, module)
        with graph.inserting_before(end):
            made = graph.call_module(path, (_padded(graph, edit, root),))
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


def _module(reading: TracedModel, edit: Collapse) -> nn.Module:
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


def _padded(graph: fx.Graph, edit: Collapse, root: fx.Node) -> fx.Node:
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
