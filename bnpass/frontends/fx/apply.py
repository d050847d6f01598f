"""Applies planned edits to the GraphModule that a view was read from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bnpass.errors import UnsupportedError
from bnpass.frontends.fx.editor import Arrays, ModuleEditor
from bnpass.frontends.fx.info import META, Info
from bnpass.frontends.fx.read import TracedModel
from bnpass.frontends.fx.slots import argument, as_tensor, data_argument, set_argument
from bnpass.importer.modules import BatchNorm
from bnpass.ir.edits import LEFTOVER_EPSILON, GraphEdits, Leftover
from bnpass.ir.graph import Op
from bnpass.ir.operators import operator
from bnpass.ir.weights import NewWeights, multiplied_out, new_weights
from bnpass.passes.context import GraphContext

NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d
}  # fmt: skip
"""By rank of the value; bnpass's own BatchNorm takes any."""


def apply_edits(
    reading: TracedModel, edits: GraphEdits, planned: list[tuple[Op, NewWeights]] | None = None
) -> None:
    """Change a reading's module in place.

    Args:
        reading: the module and its view.
        edits: what is to be done.
        planned: what :func:`planned_weights` makes of them, where it was asked already.

    Raises:
        OverflowedError: some new weight is not finite; the module is then half edited.
    """
    editor = ModuleEditor(reading)
    planned = planned_weights(reading, edits) if planned is None else planned
    _set_modules(editor, planned)
    for op, new in planned:
        set_function(editor, op, new)
    last = {left.ops[-1].name for left in edits.leftovers}
    removed = {op.name: data for op, data in edits.removed}
    order = reading.graph.order
    for op, data in sorted(whole(reading, edits), key=lambda pair: order[pair[0].name]):
        if op.name not in last:
            editor.remove(op, data)
    for left in edits.leftovers:
        write_leftover(editor, left, removed[left.ops[-1].name])
    editor.finish()


def planned_weights(reading: TracedModel, edits: GraphEdits) -> list[tuple[Op, NewWeights]]:
    """What becomes of every operator that gets other constants.

    Raises:
        UnsupportedError: an operator is to be added, or to read another value.
    """
    if edits.added or edits.inputs:
        one = edits.added[0].op if edits.added else edits.inputs[0].op
        raise UnsupportedError(f"{one.kind} {one.name!r} cannot be put into a torch module")
    view = GraphContext(reading.graph)
    planned = [(r.op, multiplied_out(new_weights(r, view))) for r in edits.rewrites]
    planned += [(new.op, NewWeights({new.index: new.make()})) for new in edits.constants]
    return planned


def whole(reading: TracedModel, edits: GraphEdits) -> list[tuple[Op, int]]:
    """Removed operators without pairs of reshapings of which one is only a part of a node.

    A fold removes them in pairs that undo each other, one behind the other in its plan.
    """
    moves = [pair for pair in edits.removed if operator(pair[0].kind).moves]
    kept = [pair for pair in edits.removed if not operator(pair[0].kind).moves]
    for first, second in zip(moves[::2], moves[1::2], strict=True):
        if first[0].name in reading.nodes and second[0].name in reading.nodes:
            kept += [first, second]
    return kept


def _set_modules(editor: ModuleEditor, planned: list[tuple[Op, NewWeights]]) -> None:
    """All new weights of one module at once: its calls may want different ones."""
    modules: dict[str, dict[fx.Node, tuple[str, Arrays]]] = {}
    for op, new in planned:
        node = editor.reading.nodes[op.name]
        if node.op == "call_module" and new.constants:
            arrays = {
                editor.reading.slots[op.name, index].name: array
                for index, array in new.constants.items()
            }
            modules.setdefault(str(node.target), {})[node] = op.name, arrays
    for path, plans in modules.items():
        editor.set_module(path, plans)


def set_function(editor: ModuleEditor, op: Op, new: NewWeights) -> None:
    """Write new constants of an operator into its node."""
    node = editor.reading.nodes[op.name]
    if node.op != "call_module":
        for index, array in sorted(new.constants.items()):
            slot = editor.reading.slots[op.name, index]
            editor.set_argument(op, slot, array, _like(editor, op, index))
        for name, value in new.attrs.items():
            if argument(node, name) is not None or op.input(2):
                set_argument(node, name, value)
    if new.add is not None:
        editor.add_behind(node, op.name, new.add)


def _like(editor: ModuleEditor, op: Op, index: int) -> torch.Tensor:
    """A tensor of the type and the device that a constant input has, or gets."""
    names = [op.input(index), *op.inputs]
    dtype = next(
        (editor.reading.graph.dtype(n) for n in names if n and editor.reading.graph.dtype(n)),
        "float32",
    )
    device = editor.device(editor.reading.nodes[op.name])
    return torch.empty(0, dtype=getattr(torch, str(dtype)), device=device)


# --- what stays ----------------------------------------------------------------------------------


def write_leftover(editor: ModuleEditor, left: Leftover, data: int) -> None:
    """Put one normalisation in the place of a chain's last operator."""
    last = left.ops[-1]
    node = editor.reading.nodes[last.name]
    source = data_argument(node, editor.reading.slots.get((last.name, data)))
    info = node.meta.get(META)
    if left.style == "bn":
        made = _as_batch_norm(editor, node, source, left)
    else:
        made = _as_affine(editor, node, source, left)
    made.meta[META] = info
    node.replace_all_uses_with(made, lambda user: user is not made)
    editor.graph.erase_node(node)


def _tensor(editor: ModuleEditor, node: fx.Node, array: np.ndarray) -> torch.Tensor:
    info = node.meta.get(META)
    dtype = getattr(torch, info.dtype) if isinstance(info, Info) else torch.float32
    return torch.as_tensor(np.ascontiguousarray(array)).to(dtype=dtype, device=editor.device(node))


def leftover_norm(left: Leftover, like: torch.Tensor) -> nn.Module:
    """A BatchNorm that computes what a chain did, in the type and on the device of ``like``."""
    n = max(left.map.shape)
    vectors = left.map.vectors(left.axis, n)
    assert vectors is not None
    module: Any = NORMS.get(left.map.rank, BatchNorm)(n, eps=LEFTOVER_EPSILON)
    scale = vectors[0] * math.sqrt(1 + LEFTOVER_EPSILON)
    module.weight = nn.Parameter(as_tensor(scale, like))
    module.bias = nn.Parameter(as_tensor(vectors[1], like))
    module.running_mean = torch.zeros_like(module.weight.data)
    module.running_var = torch.ones_like(module.weight.data)
    made: nn.Module = module
    return made


def _as_batch_norm(editor: ModuleEditor, node: fx.Node, source: fx.Node, left: Leftover) -> fx.Node:
    module = leftover_norm(left, _tensor(editor, node, np.zeros(0)))
    path = editor.add_module(f"{left.ops[0].name}_bn", module)
    with editor.graph.inserting_before(node):
        return editor.graph.call_module(path, (source,))


def _as_affine(editor: ModuleEditor, node: fx.Node, source: fx.Node, left: Leftover) -> fx.Node:
    value = source
    for role, function, array, wanted in (
        ("scale", torch.mul, left.map.scale, left.map.has_scale),
        ("shift", torch.add, left.map.shift, left.map.has_shift),
    ):
        if wanted:
            tensor = _tensor(editor, node, array)
            path = editor.add_tensor(f"{left.ops[0].name}_{role}", tensor, trainable=True)
            with editor.graph.inserting_before(node):
                constant = editor.graph.get_attr(path)
                value = editor.graph.call_function(function, (value, constant))
            value.meta[META] = node.meta.get(META)
    return value
