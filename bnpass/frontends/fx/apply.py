"""Applies planned edits to the GraphModule that a view was read from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bnpass.errors import UnsupportedError
from bnpass.frontends.fx.call import TensorSlot
from bnpass.frontends.fx.editor import Arrays, ModuleEditor
from bnpass.frontends.fx.info import META, Info, joined
from bnpass.frontends.fx.read import TracedModel
from bnpass.frontends.fx.slots import argument, as_tensor, data_argument, set_argument
from bnpass.importer.modules import BatchNorm
from bnpass.ir.edits import LEFTOVER_EPSILON, BiasDrop, GraphEdits, Leftover, NewNorm
from bnpass.ir.graph import Op
from bnpass.ir.operators import operator
from bnpass.ir.weights import NewWeights, multiplied_out, new_weights
from bnpass.passes.context import GraphContext

_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d
}  # fmt: skip


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
        UnsupportedError: an operator is to be added.
    """
    if edits.added:
        one = edits.added[0].op
        raise UnsupportedError(f"{one.kind} {one.name!r} cannot be added to a torch module")
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
    module: Any = _NORMS.get(left.map.rank, BatchNorm)(n, eps=LEFTOVER_EPSILON)
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


# --- insertion -----------------------------------------------------------------------------------


def apply_insert(
    reading: TracedModel, norms: list[NewNorm], *, sync: bool = False
) -> dict[str, str]:
    """Insert BatchNorms and drop the biases that they make redundant, in place.

    Returns:
        The path of every new module, by the norm's name.
    """
    editor = ModuleEditor(reading)
    places = {norm.name: place_of(reading, norm.value) for norm in norms}
    dropped: dict[str, list[BiasDrop]] = {}
    seen: set[tuple[str, int]] = set()
    paths = {}
    for norm in norms:
        place = places[norm.name]
        assert place is not None
        paths[norm.name] = insert_norm(editor, norm, place, sync)
    for norm in norms:
        for drop in norm.drops:
            if (drop.op.name, drop.index) in seen:
                continue
            seen.add((drop.op.name, drop.index))
            if drop.whole:
                editor.remove(drop.op, drop.data)
            else:
                slot = reading.slots[drop.op.name, drop.index]
                dropped.setdefault(slot.module, []).append(drop)
    for path, drops in dropped.items():
        _drop_biases(editor, path, drops)
    editor.finish()
    return paths


def place_of(reading: TracedModel, value: str) -> fx.Node | None:
    """The node behind which a norm on this value stands; None where no node makes just it."""
    node = reading.sources.get(value)
    if node is None:
        return None
    if reading.values.get(node) == value:
        return node
    takers = [n for n in reading.gm.graph.nodes if reading.values.get(n) == value]
    for other in takers[1:]:
        other.replace_all_uses_with(takers[0])
    return takers[0] if takers else None


def insert_norm(
    editor: ModuleEditor, norm: NewNorm, place: fx.Node, sync: bool, layers: Tensors = ()
) -> str:
    """Put a BatchNorm behind a node; returns its path.

    Args:
        editor: of the graph.
        norm: what to insert.
        place: the node.
        sync: insert SyncBatchNorm.
        layers: the weights of the layers in front: see :func:`like_layers`.
    """
    info = place.meta.get(META)
    module = like_layers(new_norm(norm, sync), layers, editor.gm)
    if not layers:
        dtype = getattr(torch, info.dtype) if isinstance(info, Info) else torch.float32
        module = module.to(dtype=dtype, device=editor.device(place))
    start(module, norm)
    path = editor.add_module(norm.name, module)
    users = _readers(editor, norm, place)
    source = _cloned(editor, norm, place)
    made = [source]
    turned = is_turned(norm)
    with editor.graph.inserting_after(_last_of(source)):
        if turned:
            made.append(editor.graph.call_method("flatten", (source, 0, -2)))
            made.append(editor.graph.call_module(path, (made[-1],)))
            made.append(editor.graph.call_method("view_as", (made[-1], source)))
            for first, second in pairwise(made[1:]):
                first.append(second)
        else:
            made.append(editor.graph.call_module(path, (source,)))
    for node in made[1:]:
        node.meta[META] = info
    if turned and isinstance(info, Info):
        flat = Info((joined(info.shape[:-1]), info.shape[-1]), info.dtype)
        made[1].meta[META] = made[2].meta[META] = flat
    for user in users:
        user.replace_input_with(place, made[-1])
    return path


def _cloned(editor: ModuleEditor, norm: NewNorm, place: fx.Node) -> fx.Node:
    """The node to normalise: ``place``, or a copy where others must not see it normalised.

    A copied call uses the same module and the same weights: both train together.
    """
    copies: dict[fx.Node, fx.Node] = {}
    last = place
    for op in norm.clones:
        node = editor.reading.nodes[op.name]
        with editor.graph.inserting_after(last):
            last = editor.copy_node(node, copies)
        copies[node] = last
    return last


def _last_of(place: fx.Node) -> fx.Node:
    """Behind the inputs of the graph, not between them."""
    while place.op == "placeholder" and place.next.op == "placeholder":
        place = place.next
    return place


def _readers(editor: ModuleEditor, norm: NewNorm, place: fx.Node) -> list[fx.Node]:
    chosen = norm.readers
    if chosen is None:
        return list(place.users)
    nodes = {editor.reading.origins[name] for name in chosen}
    return [user for user in place.users if user in nodes]


def is_turned(norm: NewNorm) -> bool:
    """Whether the channels are the last of more than two axes: the others become one."""
    return norm.axis != 1 and norm.rank > 2


def new_norm(norm: NewNorm, sync: bool) -> nn.Module:
    """A BatchNorm module of the right kind, its parameters still to be set."""
    n = norm.scale.size
    kind: Any = nn.BatchNorm1d if is_turned(norm) else _NORMS.get(norm.rank, BatchNorm)
    if sync:
        kind = nn.SyncBatchNorm
    module: nn.Module = kind(n, eps=norm.epsilon, momentum=norm.momentum)
    return module


Tensors = Sequence[torch.Tensor]


def like_layers(module: nn.Module, layers: Tensors, home: nn.Module) -> nn.Module:
    """A new norm on the device of the layers in front, in their type, frozen if they all are."""
    held = [t for t in layers if t.is_floating_point()]
    if held:
        module.to(dtype=held[0].dtype, device=held[0].device)
        module.requires_grad_(any(t.requires_grad for t in held))
    module.train(home.training)
    return module


def start(module: Any, norm: NewNorm) -> None:
    """Initial gamma, beta and statistics, rounded once to the module's type."""
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(norm.scale))
        module.bias.copy_(torch.as_tensor(norm.bias))
        module.running_mean.copy_(torch.as_tensor(norm.mean))
        module.running_var.copy_(torch.as_tensor(norm.var))


def _drop_biases(editor: ModuleEditor, path: str, drops: list[BiasDrop]) -> None:
    if not path:
        for drop in drops:
            drop_argument(editor.reading.slots[drop.op.name, drop.index])
        return
    editor.drop_bias(path, [editor.reading.nodes[drop.op.name] for drop in drops])


def drop_argument(slot: TensorSlot) -> None:
    """Let a function do without its bias."""
    node = slot.node
    if slot.name != "x":  # only addmm's C is called so, and it cannot be left out
        set_argument(node, slot.name, None)
        return
    names = ("mat1", "mat2")
    alpha = argument(node, "alpha")
    if alpha in (None, 1):
        node.args, node.kwargs = tuple(argument(node, n) for n in names), {}
        atens = isinstance(node.target, torch._ops.OpOverload)
        if node.op == "call_method":
            node.op = "call_function"
        node.target = torch.ops.aten.mm.default if atens else torch.mm
    else:
        set_argument(node, "beta", 0)
