"""A fold carried out on a user's module: parameters rewritten where they are, norms taken out.

1. Parameters that only one operator reads are rewritten in place, in modules and behind functions.
2. A module that does nothing any more becomes nn.Identity and keeps its hooks; a BatchNorm that a
   hook of bnpass calls goes with the hook.
3. What lies in the middle of a forward, or differs from call to call, is edited in the graph of
   that one forward; where it cannot become a graph, the chain stays, with the reason.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnpass.frontends.fx.anchors import frame_of
from bnpass.frontends.fx.apply import (
    leftover_norm,
    planned_weights,
    set_function,
    whole,
    write_leftover,
)
from bnpass.frontends.fx.call import TensorSlot
from bnpass.frontends.fx.draft import Draft
from bnpass.frontends.fx.editor import (
    Arrays,
    ModuleEditor,
    check,
    equal,
    write_module,
    write_tensor,
)
from bnpass.frontends.fx.info import META
from bnpass.frontends.fx.inplace import Memory
from bnpass.frontends.fx.layout import row_by_row
from bnpass.frontends.fx.normhook import detach
from bnpass.frontends.fx.own_graph import replace_module
from bnpass.frontends.fx.recording import Frame
from bnpass.frontends.fx.slots import argument, as_tensor, data_argument
from bnpass.ir.edits import GraphEdits, Leftover
from bnpass.ir.graph import Op
from bnpass.ir.operators import operator
from bnpass.ir.weights import NewWeights

Weights = list[tuple[Op, NewWeights]]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
          "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
          "_backward_pre_hooks", "_is_full_backward_hook")  # fmt: skip


@dataclass(eq=False)
class Work:
    """Edits of one fold, sorted by where they are made.

    Attributes:
        modules: new weights of modules, by module path: the same for all calls.
        split: calls of a module that get weights of their own, by (frame's module, path).
        functions: operators whose constants are arguments, edited in place where ``plain``.
        removed: what goes.
        leftovers: chains that become one operator.
        missing: calls whose forward has to become a graph first.
        needs: the same, by the operator whose edit asks for it.
        reasons: why an operator's edit cannot be made, by its name.
    """

    modules: dict[str, tuple[str, Arrays]] = field(default_factory=dict)
    split: list[tuple[fx.Node, Op, Arrays]] = field(default_factory=list)
    functions: list[tuple[Op, NewWeights, bool]] = field(default_factory=list)
    removed: list[tuple[Op, int, bool]] = field(default_factory=list)
    leftovers: list[tuple[Leftover, int, bool]] = field(default_factory=list)
    missing: dict[int, Frame] = field(default_factory=dict)
    needs: dict[str, Frame] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class Folder:
    """Sorts the edits of a plan for a draft, and makes them."""

    def __init__(self, draft: Draft, edits: GraphEdits) -> None:
        self.draft, self.edits = draft, edits
        self.reading = draft.reading
        self.nodes = draft.reading.nodes
        self.memory = Memory(draft.reading.gm)
        self.work = Work()
        self.editors: dict[int, tuple[Frame, ModuleEditor]] = {}
        self.planned = planned_weights(self.reading, edits)
        self._sort()

    # --- where -----------------------------------------------------------------------------------

    def _sort(self) -> None:
        self._sort_modules()
        for op, new in self.planned:
            node = self.nodes[op.name]
            plain = node.op != "call_module" and self._is_plain(op, new)
            if node.op != "call_module" or new.add is not None:
                self.work.functions.append((op, new, plain))
                if not plain:
                    self._need(node, op)
        last = {left.ops[-1].name for left in self.edits.leftovers}
        order = self.reading.graph.order
        gone = [(op, data) for op, data in self._whole() if op.name not in last]
        names = {op.name for op, _ in gone}
        for op, data in sorted(gone, key=lambda pair: order[pair[0].name]):
            plain = self._goes_whole(op, data, names)
            self.work.removed.append((op, data, plain))
            if not plain:
                self._need(self.nodes[op.name], op)
        removed = {op.name: data for op, data in self.edits.removed}
        for left in self.edits.leftovers:
            op = left.ops[-1]
            plain = left.style == "bn" and self._is_norm_once(self.nodes[op.name])
            self.work.leftovers.append((left, removed[op.name], plain))
            if not plain:
                self._need(self.nodes[op.name], op)

    def _need(self, node: fx.Node, op: Op) -> None:
        """A node has to be one of a graph."""
        if self.draft.is_editable(node):
            return
        reason = self.draft.obstacle(node)
        if reason:
            self.work.reasons[op.name] = reason
        self.work.needs[op.name] = frame_of(node)
        self.work.missing[id(frame_of(node).module)] = frame_of(node)

    def _calls(self, node: fx.Node) -> list[fx.Node | None]:
        """All calls of the module that a node calls."""
        module = self.reading.gm.get_submodule(str(node.target))
        return [frame.node for frame in self.draft.recording.calls[id(module)]]

    def _sort_modules(self) -> None:
        """Weights of modules: in place where all calls want the same ones."""
        wanted: dict[fx.Node, tuple[Op, Arrays]] = {}
        for op, new in self.planned:
            node = self.nodes[op.name]
            if node.op == "call_module" and new.constants:
                slots = self.reading.slots
                arrays = {slots[op.name, i].name: a for i, a in new.constants.items()}
                wanted[node] = op, arrays
        for node, (op, arrays) in wanted.items():
            others = self._calls(node)
            same = all(n in wanted and equal(wanted[n][1], arrays) for n in others if n is not None)
            if same and None not in others and not self._is_read(str(node.target)):
                self.work.modules[str(node.target)] = op.name, arrays
            else:
                self.work.split.append((node, op, arrays))
                self._need(node, op)

    def _is_read(self, path: str) -> bool:
        """Whether a function reads a tensor of a module that is called."""
        module = self.reading.gm.get_submodule(path)
        own = {id(t) for t in (*module.parameters(), *module.buffers())}
        return any(id(self._held(n)) in own for n in self._attributes())

    def _attributes(self) -> list[fx.Node]:
        return [n for n in self.reading.gm.graph.nodes if n.op == "get_attr"]

    def _held(self, node: fx.Node) -> Any:
        held: Any = self.reading.gm
        for part in str(node.target).split("."):
            held = getattr(held, part)
        return held

    def _is_plain(self, op: Op, new: NewWeights) -> bool:
        """Whether a function's constants are parameters that nothing else reads."""
        node = self.nodes[op.name]
        if new.add is not None:
            return False
        for name, value in new.attrs.items():
            now = argument(node, name)
            if (now is not None or op.input(2)) and (1.0 if now is None else now) != value:
                return False
        slots = [self.reading.slots[op.name, i] for i in new.constants]
        return all(self._home(op, slot) is not None for slot in slots)

    def _home(self, op: Op, slot: TensorSlot) -> tuple[nn.Module, str] | None:
        """(module, name) of the parameter that only one argument of one function reads."""
        node, root = slot.node, self.draft.root
        held = argument(node, slot.name)
        if held is None:
            module = frame_of(node).module
            free = slot.name in module._parameters and module._parameters[slot.name] is None
            known = slot.name == "bias" and operator(op.kind).bias is not None
            return (module, slot.name) if free and known and not self._is_graph(node) else None
        if not isinstance(held, fx.Node) or held.op != "get_attr" or list(held.users) != [node]:
            return None
        times = sum(a is held for a in (*node.args, *node.kwargs.values()))
        path, _, leaf = str(held.target).rpartition(".")
        tensor = self._held(held)
        if times != 1 or not self._known(tensor) or self._is_called(tensor):
            return None
        return root.get_submodule(path), leaf

    def _is_graph(self, node: fx.Node) -> bool:
        return isinstance(frame_of(node).module, fx.GraphModule)

    def _known(self, tensor: Any) -> bool:
        """Whether a tensor is a parameter or buffer that one module holds under one name."""
        tables = [t for m in self.draft.root.modules() for t in (m._parameters, m._buffers)]
        return sum(value is tensor for table in tables for value in table.values()) == 1

    def _is_called(self, tensor: Any) -> bool:
        """Whether a module that is one operator holds the tensor as well."""
        singles = [f.module for f in self.draft.recording.frames if f.node is not None]
        return any(p is tensor for m in singles for p in (*m.parameters(), *m.buffers()))

    def _whole(self) -> list[tuple[Op, int]]:
        """Removed operators; of pairs of reshapings those that are nodes of graphs."""
        pairs = whole(self.reading, self.edits)
        moves = [pair for pair in pairs if operator(pair[0].kind).moves]
        kept = [pair for pair in pairs if not operator(pair[0].kind).moves]
        for pair in zip(moves[::2], moves[1::2], strict=True):
            if all(self.draft.is_editable(self.nodes[op.name]) for op, _ in pair):
                kept += pair
        return kept

    def _goes_whole(self, op: Op, data: int, names: set[str]) -> bool:
        """Whether an operator is a module that does nothing any more in any call."""
        node = self.nodes[op.name]
        if node.op != "call_module" or (self.draft.is_editable(node) and not self._hooked(node)):
            return False
        gone = {self.nodes[name] for name in names}
        if not all(n in gone for n in self._calls(node)):
            return False
        source = data_argument(node, self.reading.slots.get((op.name, data)))
        shared = source.op in ("placeholder", "get_attr") or len(source.users) > 1
        later = self.memory.is_written_behind(source, node)
        return not later and not (shared and self.memory.is_written(node))

    def _hooked(self, node: fx.Node) -> bool:
        module = self.reading.gm.get_submodule(str(node.target))
        return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)

    def _is_norm_once(self, node: fx.Node) -> bool:
        if node.op != "call_module" or self.draft.is_editable(node):
            return False
        module = self.reading.gm.get_submodule(str(node.target))
        return isinstance(module, _BatchNorm) and len(self._calls(node)) == 1

    # --- what ------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Make the edits.

        Raises:
            OverflowedError: some new weight is not finite; the draft is then half edited.
        """
        root, work = self.draft.root, self.work
        for path, (name, arrays) in work.modules.items():
            write_module(root.get_submodule(path), arrays, name)
        self._split()
        for op, new, plain in work.functions:
            if plain:
                self._write(op, new)
            else:
                set_function(self._editor(self.nodes[op.name]), op, new)
        for op, data, plain in work.removed:
            if plain:
                self._take_out(op, data)
            else:
                self._editor(self.nodes[op.name]).remove(op, data)
        for left, data, plain in work.leftovers:
            node = self.nodes[left.ops[-1].name]
            if plain:
                self._replace_norm(str(node.target), left)
            else:
                write_leftover(self._editor(node), left, data)
        for _, editor in self.editors.values():
            editor.finish()

    def _editor(self, node: fx.Node) -> ModuleEditor:
        frame = frame_of(node)
        if id(frame.module) not in self.editors:
            editor = ModuleEditor(self.draft.projected(frame))
            editor.foreign = self._foreign(frame)
            self.editors[id(frame.module)] = frame, editor
        return self.editors[id(frame.module)][1]

    def _foreign(self, frame: Frame) -> Callable[[torch.Tensor], bool]:
        """Whether something outside of a frame's forward reads a tensor, too."""
        outside = {
            id(self._held(n)) for n in self._attributes()
            if any(u.op != "output" and frame_of(u) is not frame for u in n.users)
        }  # fmt: skip
        return lambda t: id(t) in outside or self._is_called(t) or not self._known(t)

    def _split(self) -> None:
        """Calls of modules that get weights of their own."""
        groups: dict[tuple[int, str], dict[fx.Node, tuple[str, Arrays]]] = {}
        sample: dict[tuple[int, str], fx.Node] = {}
        for node, op, arrays in self.work.split:
            origin = self.draft.origin(node)
            assert origin is not None
            key = id(frame_of(node).module), str(origin.target)
            groups.setdefault(key, {})[origin] = op.name, arrays
            sample[key] = node
        for key, plans in groups.items():
            node = sample[key]
            home = frame_of(node)
            others = any(n is None or frame_of(n) is not home for n in self._calls(node))
            keep = others or self._is_read(str(node.target))
            self._editor(node).set_module(key[1], plans, keep=keep)

    def _write(self, op: Op, new: NewWeights) -> None:
        for index, array in sorted(new.constants.items()):
            home = self._home(op, self.reading.slots[op.name, index])
            assert home is not None
            module, name = home
            old = getattr(module, name)
            like = old if old is not None else next(module.parameters())
            tensor = as_tensor(array, like)
            check(op.name, tensor)
            write_tensor(module, name, tensor)

    def _take_out(self, op: Op, data: int) -> None:
        root, node = self.draft.root, self.nodes[op.name]
        path = str(node.target)
        home, _, child = path.rpartition(".")
        if detach(root.get_submodule(home), child):
            return
        source = data_argument(node, self.reading.slots.get((op.name, data)))
        orders = [getattr(n.meta.get(META), "order", None) for n in (source, node)]
        moved = orders[0] is not None and orders[1] is None
        old = root.get_submodule(path)
        new = _with_hooks(row_by_row() if moved else nn.Identity(), old)
        self.draft.root = replace_module(root, old, new)

    def _replace_norm(self, path: str, left: Leftover) -> None:
        root = self.draft.root
        old = root.get_submodule(path)
        held = [*old.parameters(), *old.buffers()]
        new = _with_hooks(leftover_norm(left, held[0]), old)
        self.draft.root = replace_module(root, old, new)


def _with_hooks(new: nn.Module, old: nn.Module) -> nn.Module:
    new.training = old.training
    for name in _HOOKS:
        vars(new)[name] = vars(old)[name]
    return new


def patterns(names: dict[str, str]) -> tuple[str, ...]:
    """Names of operators as glob patterns."""
    return tuple(glob.escape(name) for name in names)
