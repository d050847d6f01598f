"""BatchNorms put behind nodes of a GraphModule, and biases that they make redundant dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from bnpass.frontends.fx.apply import NORMS
from bnpass.frontends.fx.call import TensorSlot
from bnpass.frontends.fx.editor import ModuleEditor
from bnpass.frontends.fx.info import META, Info, joined
from bnpass.frontends.fx.layout import inverse, is_kept
from bnpass.frontends.fx.read import TracedModel
from bnpass.frontends.fx.slots import argument, set_argument
from bnpass.importer.modules import BatchNorm
from bnpass.ir.edits import BiasDrop, NewNorm


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
    module = like_layers(new_norm(norm, sync, _rows(info, norm)[1]), layers, editor.gm)
    if not layers:
        dtype = getattr(torch, info.dtype) if isinstance(info, Info) else torch.float32
        module = module.to(dtype=dtype, device=editor.device(place))
    start(module, norm)
    path = editor.add_module(norm.name, module)
    users = _readers(editor, norm, place)
    source = _cloned(editor, norm, place)
    made = _called(editor, path, source, info, norm)
    for user in users:
        user.replace_input_with(place, made)
    return path


def _rows(info: Any, norm: NewNorm) -> tuple[tuple[int, ...] | None, bool]:
    """(permutation to take first, whether the channels are then the last of more than two axes)."""
    order = info.order if isinstance(info, Info) else None
    if order is not None and not is_kept(order, norm.axis):
        at = order.index(norm.axis)
        if at in (1, norm.rank - 1):
            return order, at != 1
    return None, is_turned(norm)


def _called(
    editor: ModuleEditor, path: str, source: fx.Node, info: Any, norm: NewNorm
) -> fx.Node:
    """Nodes that call a BatchNorm on a value and leave it laid out in memory as it was."""
    order, turned = _rows(info, norm)
    last = _last_of(source)

    def call(op: str, target: str, args: tuple[Any, ...], held: Any) -> fx.Node:
        nonlocal last
        with editor.graph.inserting_after(last):
            last = editor.graph.create_node(op, target, args)
        last.meta[META] = held
        return last

    rows, held = source, info
    if order is not None:
        held = replace(info, shape=tuple(info.shape[i] for i in order), order=None)
        rows = call("call_method", "permute", (source, *order), held)
    if turned:
        flat = held
        if isinstance(held, Info):
            flat = Info((joined(held.shape[:-1]), held.shape[-1]), held.dtype)
        made = call("call_method", "flatten", (rows, 0, -2), flat)
        made = call("call_module", path, (made,), flat)
        made = call("call_method", "view_as", (made, rows), held)
    else:
        made = call("call_module", path, (rows,), held)
    if order is not None:
        made = call("call_method", "permute", (made, *inverse(order)), info)
    return made


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


def new_norm(norm: NewNorm, sync: bool, turned: bool) -> nn.Module:
    """A BatchNorm module of the right kind, its parameters still to be set.

    Args:
        norm: what to insert.
        sync: SyncBatchNorm.
        turned: it gets (values, C).
    """
    n = norm.scale.size
    kind: Any = nn.BatchNorm1d if turned else NORMS.get(norm.rank, BatchNorm)
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
