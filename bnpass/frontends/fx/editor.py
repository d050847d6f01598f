"""Surgery on a GraphModule: new weights, removed and added nodes, and no trace left behind."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from bnpass.frontends.fx.call import TensorSlot
from bnpass.frontends.fx.hooks import unparametrize
from bnpass.frontends.fx.info import META, Info
from bnpass.frontends.fx.inplace import Memory
from bnpass.frontends.fx.modules import ByMode, TrainingFlag
from bnpass.frontends.fx.read import TracedModel
from bnpass.frontends.fx.slots import argument, as_tensor, data_argument, set_argument
from bnpass.frontends.fx.tracing import owner
from bnpass.ir.affine import infinite_channel
from bnpass.ir.graph import Op

Arrays = dict[str, np.ndarray]
"""New values of a module's attributes, by name."""


class OverflowedError(Exception):
    """New weights of an operator are not finite in their type."""

    def __init__(self, op: str, channel: int | None = None) -> None:
        super().__init__(op)
        self.op, self.channel = op, channel


class ModuleEditor:
    """Edits the module of a reading in place; ``finish`` makes it runnable again."""

    def __init__(self, reading: TracedModel) -> None:
        self.reading, self.gm = reading, reading.gm
        self.graph = reading.gm.graph
        self._made: dict[str, list[tuple[torch.Tensor, str]]] = {}
        self.foreign: Callable[[torch.Tensor], bool] = lambda _: False
        self._before = self._targets()
        self._memory = Memory(self.gm)
        self._calls: dict[str, list[fx.Node]] = {}
        self._owners: set[str] = set()
        self._free: set[fx.Node] = set()  # do not depend on how what they read lies in memory
        for node in self.graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(str(node.target), []).append(node)
            elif node.op == "get_attr":
                self._owners.update(_heads(str(node.target)))

    def _targets(self) -> set[str]:
        return {str(n.target) for n in self.graph.nodes if n.op in ("call_module", "get_attr")}

    # --- names -----------------------------------------------------------------------------------

    def path(self, name: str) -> str:
        """A path that is free, made of a name that may hold any characters."""
        clean = re.sub(r"[^0-9A-Za-z_.]+", "_", name).strip("._") or "bn"
        path, n = clean, 1
        while self._taken(path):
            n += 1
            path = f"{clean}_{n}"
        return path

    def _taken(self, path: str) -> bool:
        at: Any = self.gm
        for part in path.split("."):
            if not hasattr(at, part):
                return False
            at = getattr(at, part)
        return True

    def add_module(self, name: str, module: nn.Module) -> str:
        """Attach a module at a free path; returns the path."""
        path = self.path(name)
        module.train(self.gm.training)
        owner(self.gm, path).add_module(path.rpartition(".")[2], module)
        return path

    def add_tensor(self, name: str, tensor: torch.Tensor, *, trainable: bool) -> str:
        """Attach a parameter or a buffer at a free path; returns the path."""
        path = self.path(name)
        home, leaf = owner(self.gm, path), path.rpartition(".")[2]
        if trainable:
            home.register_parameter(leaf, nn.Parameter(tensor, requires_grad=True))
        else:
            home.register_buffer(leaf, tensor)
        return path

    # --- weights ---------------------------------------------------------------------------------

    def set_module(
        self, path: str, plans: dict[fx.Node, tuple[str, Arrays]], *, keep: bool = False
    ) -> None:
        """Give a module new weights; calls of it that want others get a clone.

        Args:
            path: of the module.
            plans: (operator, new arrays) for the calls whose weights change.
            keep: others outside of this graph need the module as it is.
        """
        calls = self._calls[path]
        same = keep or path in self._owners
        groups: list[tuple[Arrays, list[fx.Node], str]] = []
        for node in calls:
            name, arrays = plans.get(node, ("", {}))
            for known, nodes, _ in groups:
                if equal(known, arrays):
                    nodes.append(node)
                    break
            else:
                groups.append((arrays, [node], name))
        kept = same or any(not arrays for arrays, _, _ in groups)
        changed = [group for group in groups if group[0]]
        first = 0 if kept else 1
        # clones before writes: a group may change a bias only, and needs the old weight
        targets = [path] * first + [self._clone(path, nodes) for _, nodes, _ in changed[first:]]
        for target, (arrays, _, name) in zip(targets, changed, strict=True):
            write_module(self.gm.get_submodule(target), arrays, name)

    def copy_node(self, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
        """A copy of a node that reads copies where there are some; weights are shared."""
        copied = self.graph.node_copy(node, lambda n: copies.get(n, n))
        if copied.op == "call_module":
            self._calls[str(copied.target)].append(copied)
        return copied

    def drop_bias(self, path: str, nodes: list[fx.Node], *, keep: bool = False) -> None:
        """Let calls of a module do without its bias; its other readers keep it."""
        shared = keep or len(nodes) < len(self._calls[path]) or path in self._owners
        no_bias(self.gm.get_submodule(self._clone(path, nodes) if shared else path))

    def _clone(self, path: str, nodes: list[fx.Node]) -> str:
        module = copy.deepcopy(self.gm.get_submodule(path))
        new = self.path(path)
        owner(self.gm, new).add_module(new.rpartition(".")[2], module)
        for node in nodes:
            node.target = new
        return new

    def set_argument(self, op: Op, slot: TensorSlot, array: np.ndarray, like: torch.Tensor) -> None:
        """Give a function another constant."""
        node = slot.node
        old = argument(node, slot.name)
        tensor = as_tensor(array, like)
        check(op.name, tensor)
        if slot.scalar or (isinstance(old, int | float) and tensor.numel() == 1):
            set_argument(node, slot.name, float(tensor.double().reshape(())))
            return
        base = f"{old.target}" if _is_attribute(old) else f"{op.name}_{slot.name.strip('*')}"
        made = self._made.setdefault(base, [])
        name = next((name for known, name in made if torch.equal(known, tensor)), "")
        path = None if name else self._own_path(old, node)
        if path is not None:
            _replace_tensor(self.gm, path, tensor)
            return
        if not name:  # one copy for all that want the same
            name = self.add_tensor(base, tensor, trainable=not isinstance(old, int | float))
            made.append((tensor, name))
        with self.graph.inserting_before(node):
            value = self.graph.get_attr(name)
        value.meta[META] = Info(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        set_argument(node, slot.name, value)

    def _own_path(self, old: Any, node: fx.Node) -> str | None:
        """The path of an attribute that nothing but this one argument reads."""
        if not _is_attribute(old):
            return None
        path = str(old.target)
        readers = [n for n in self.graph.nodes if n.op == "get_attr" and n.target == path]
        home = path.rpartition(".")[0]
        called = any(n.op == "call_module" and n.target == home for n in self.graph.nodes)
        users = [u for r in readers for u in r.users]
        times = sum(a is old for a in [*node.args, *node.kwargs.values()])
        held: Any = self.gm
        for part in path.split("."):
            held = getattr(held, part)
        if self.foreign(held):
            return None
        return path if users == [node] and times == 1 and not called else None

    # --- nodes -----------------------------------------------------------------------------------

    def add_behind(self, node: fx.Node, name: str, shift: np.ndarray) -> None:
        """Add a constant to what a node makes, for all its readers."""
        info = node.meta.get(META)
        dtype = getattr(torch, info.dtype) if isinstance(info, Info) else torch.float32
        tensor = torch.as_tensor(_unpadded(shift)).to(dtype=dtype, device=self.device(node))
        check(name, tensor)
        path = self.add_tensor(f"{name}_bias", tensor, trainable=True)
        with self.graph.inserting_after(node):
            bias = self.graph.get_attr(path)
        with self.graph.inserting_after(bias):
            total = self.graph.call_function(operator.add, (node, bias))
        bias.meta[META] = Info(tuple(tensor.shape), str(dtype).removeprefix("torch."))
        total.meta[META] = info
        node.replace_all_uses_with(total, lambda user: user is not total)

    def remove(self, op: Op, data: int) -> None:
        """Take a node out; its readers get what it read."""
        node = self.reading.nodes[op.name]
        source = data_argument(node, self.reading.slots.get((op.name, data)))
        shared = source.op in ("placeholder", "get_attr") or len(source.users) > 1
        read_later = self._memory.is_written_behind(source, node)
        if read_later or (shared and self._memory.is_written(node)):
            with self.graph.inserting_before(node):
                copied = self.graph.call_method("clone", (source,))
            copied.meta[META] = source.meta.get(META)
            source = copied
        self._memory.join(source, node)
        self._allow_strides(node)
        node.replace_all_uses_with(source)
        self.graph.erase_node(node)

    def _allow_strides(self, node: fx.Node) -> None:
        """``view`` may depend on a node's memory layout, also behind others; ``reshape`` does not.

        Not where somebody writes into the view: then it has to stay one.
        """
        todo = [node]
        while todo:
            for user in todo.pop().users:
                if user not in self._free:
                    self._free.add(user)
                    todo.append(user)
                    if not self._memory.is_written(user):
                        _reshape(user)

    def device(self, node: fx.Node) -> torch.device:
        """Where a node computes: where its module's or the network's parameters are."""
        if node.op == "call_module":
            held = list(self.gm.get_submodule(str(node.target)).parameters())
            if held:
                return held[0].device
        everything = [*self.gm.parameters(), *self.gm.buffers()]
        return everything[0].device if everything else torch.device("cpu")

    def finish(self) -> None:
        """Drop what nothing reads any more, and compile."""
        for node in reversed(self.graph.nodes):
            value = self.reading.values.get(node)
            constant = isinstance(value, str) and value in self.reading.constants
            unread = not node.users and (node.op == "get_attr" or constant)
            if unread or (not node.users and self._is_flag(node)):
                self.graph.erase_node(node)
        targets = self._targets()
        held = targets | {head for path in targets for head in _heads(path)}
        for path in sorted(self._before - targets):
            if path not in held and not targets.intersection(_heads(path)):
                self._drop(path)
        self.graph.lint()
        self.gm.recompile()

    def _is_flag(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return False
        return isinstance(self.gm.get_submodule(str(node.target)), TrainingFlag | ByMode)

    def _drop(self, path: str) -> None:
        home, _, leaf = path.rpartition(".")
        try:
            holder = self.gm.get_submodule(home)
        except AttributeError:
            return
        if hasattr(holder, leaf):
            delattr(holder, leaf)
        if leaf == "running_mean":
            holder._buffers.pop("num_batches_tracked", None)
        while home and _is_empty(self.gm.get_submodule(home)):
            self.gm.delete_submodule(home)
            home = home.rpartition(".")[0]


def _heads(path: str) -> list[str]:
    """The paths of the modules around what lies at a path."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _unpadded(shift: np.ndarray) -> np.ndarray:
    """Without the leading axes of size 1."""
    axes = [i for i, n in enumerate(shift.shape) if n != 1]
    return shift.reshape(shift.shape[axes[0] :] if axes else (1,))


def _is_attribute(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _is_empty(module: nn.Module) -> bool:
    held = (module._modules, module._parameters, module._buffers)
    return type(module) is nn.Module and not any(held)


def equal(a: Arrays, b: Arrays) -> bool:
    """Whether both give the same attributes the same numbers."""
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def _reshape(user: fx.Node) -> None:
    if any(isinstance(a, torch.dtype) for a in user.args):
        return
    if user.op == "call_method" and user.target == "view":
        user.target = "reshape"
    elif user.target is torch.ops.aten.view.default:
        user.target = torch.ops.aten.reshape.default


def check(op: str, tensor: torch.Tensor) -> None:
    """Raise OverflowedError for numbers that are not finite."""
    if not bool(torch.isfinite(tensor).all()):
        raise OverflowedError(op, infinite_channel(tensor.detach().double().cpu().numpy()))


# --- modules -------------------------------------------------------------------------------------


def no_bias(module: nn.Module) -> None:
    """Let a module do without its bias."""
    if parametrize.is_parametrized(module, "bias"):
        unparametrize(module, "bias")
    module.register_parameter("bias", None)


def write_module(module: nn.Module, arrays: Arrays, op: str) -> None:
    """Give a module new weights, by attribute."""
    for name, array in arrays.items():
        if isinstance(module, nn.RNNBase):
            _write_recurrent(module, name, array, op)
        else:
            _write_attribute(module, name, array, op)


def _write_recurrent(module: nn.RNNBase, name: str, array: np.ndarray, op: str) -> None:
    """One row a direction; of a bias row the first half is the input's."""
    for row, end in zip(array, ["", "_reverse"], strict=False):
        half = row[: len(row) // 2] if name.startswith("bias") else row
        _write_attribute(module, name + end, half, op)


def _write_attribute(module: nn.Module, name: str, array: np.ndarray, op: str) -> None:
    old = getattr(module, name, None)
    if isinstance(old, int | float):
        setattr(module, name, float(array))
        return
    like = old if old is not None else next(module.parameters(), None)
    tensor = torch.as_tensor(array).float() if like is None else as_tensor(array, like)
    check(op, tensor)
    write_tensor(module, name, tensor)


def write_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Give a module another tensor under a name, with what stood there as its model.

    Layout in memory, requires_grad and attributes hung on a parameter stay; a parameter that is
    made wants a gradient where the module's others do.
    """
    old = getattr(module, name, None)
    if old is not None and old.shape == tensor.shape and not old.is_meta:
        with torch.no_grad():
            tensor = torch.empty_like(old, memory_format=torch.preserve_format).copy_(tensor)
    if old is not None and name not in module._parameters:
        if name in module._buffers:
            module._buffers[name] = tensor
        else:
            setattr(module, name, tensor)
        return
    others = [p.requires_grad for p in module.parameters(recurse=False)]
    grad = old.requires_grad if old is not None else any(others) or not others
    made = nn.Parameter(tensor.detach(), requires_grad=grad)
    vars(made).update(vars(old) if old is not None else {})
    vars(module).pop(name, None)
    module.register_parameter(name, made)


def _replace_tensor(gm: fx.GraphModule, path: str, tensor: torch.Tensor) -> None:
    home, _, leaf = path.rpartition(".")
    write_tensor(gm.get_submodule(home), leaf, tensor)
