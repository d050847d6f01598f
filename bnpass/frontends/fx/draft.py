"""A copy of the user's module that is being edited, and what a run of it was seen to do."""

from __future__ import annotations

import operator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnpass.errors import UnsupportedError
from bnpass.frontends.fx.anchors import frame_of, is_once
from bnpass.frontends.fx.info import META
from bnpass.frontends.fx.inputs import Example
from bnpass.frontends.fx.observing import observe
from bnpass.frontends.fx.own_graph import as_chain, own_graph, replace_module
from bnpass.frontends.fx.read import TracedModel, read
from bnpass.frontends.fx.recording import CALL, ORIGIN, Frame, Recording, is_single
from bnpass.frontends.fx.tracing import mode
from bnpass.ir.graph import Op


@dataclass(eq=False)
class Draft:
    """A module and its latest recording.

    Attributes:
        root: the module; a GraphModule once its own forward has become one.
        example: what its forward takes.
        refused: why the forward of a module cannot become a graph, by the module's id.
        rewritten: paths of the modules that became graphs.
        norms: those of them that were BatchNorms with a forward of their own.
        as_is: modules keep the mode that each of them is in; else inference is looked at.
    """

    root: nn.Module
    example: Example
    refused: dict[int, str] = field(default_factory=dict)
    rewritten: list[str] = field(default_factory=list)
    norms: list[fx.GraphModule] = field(default_factory=list)
    as_is: bool = False
    recording: Recording = field(init=False)
    reading: TracedModel = field(init=False)

    def look(self) -> TracedModel:
        """Run the module anew and read what it does, as inference sees it."""
        with nullcontext() if self.as_is else mode(self.root, False):
            self.recording = observe(self.root, self.example)
            gm: Any = self.recording.gm
            self.reading = read(gm)
        return self.reading

    def is_editable(self, node: fx.Node) -> bool:
        """Whether a node of the recording is one node of a GraphModule called once."""
        origin = self.origin(node)
        if origin is None or not is_once(self.recording, frame_of(node)):
            return False
        return self._siblings(node) == 1

    def origin(self, node: fx.Node) -> fx.Node | None:
        """The node of a GraphModule that stands for a node of the recording."""
        origin = node.meta.get(ORIGIN)
        if not isinstance(origin, fx.Node) or self._is_changed(node):
            return None
        parent = node.args[0] if node.args else None
        if not isinstance(parent, fx.Node) or not _is_part(node, parent):
            return origin
        if parent.meta.get(ORIGIN) is not origin:
            return origin  # a node of its own that takes an element
        home: Any = origin
        takers = [u for u in home.users if _is_part(u, home) and u.args[1] == node.args[1]]
        return takers[0] if len(takers) == 1 else None

    def _is_changed(self, node: fx.Node) -> bool:
        """Whether hooks change what a called module makes."""
        call = node.meta.get(CALL)
        return isinstance(call, Frame) and call.output is not node

    def _siblings(self, node: fx.Node) -> int:
        frame, origin = node.meta.get("bnpass_frame"), node.meta.get(ORIGIN)
        made = [
            n for n in self.recording.gm.graph.nodes
            if n.meta.get("bnpass_frame") is frame and n.meta.get(ORIGIN) is origin
        ]  # fmt: skip
        heads = [n for n in made if not any(_is_part(n, m) for m in made)]
        return len(heads)

    def obstacle(self, node: fx.Node) -> str:
        """Why the forward that makes a node's call cannot become a graph; empty: it may."""
        frame = frame_of(node)
        what = f"{type(frame.module).__name__} {frame.path!r}"
        if self._is_changed(node):
            return f"a hook changes what {node.target!r} returns"
        if node.meta.get("bnpass_phase") != "forward":
            return f"a hook of {what} makes it"
        if not is_once(self.recording, frame):
            return f"{what} is called more than once"
        if isinstance(frame.module, fx.GraphModule):
            return f"it is a part of a node of {what}"
        if is_single(frame.module) and frame.parent is not None:
            return f"{what} is torch's own module"
        return self.refused.get(id(frame.module), "")

    def rewrite(self, frames: list[Frame]) -> None:
        """Let the forwards of these calls become graphs; what fails is noted in ``refused``."""
        for frame in frames:
            try:
                gm = own_graph(frame)
            except UnsupportedError as error:
                self.refused[id(frame.module)] = str(error)
                continue
            self.root = replace_module(self.root, frame.module, gm)
            self.rewritten.append(frame.path)
            if isinstance(frame.module, _BatchNorm):
                self.norms.append(gm)

    def settle(self) -> None:
        """What is left of BatchNorms' subclasses is a chain of their children, if it can be."""
        for gm in self.norms:
            made = as_chain(gm)
            if made is not None:
                self.root = replace_module(self.root, gm, made)

    def weights(self, names: tuple[str, ...]) -> list[torch.Tensor]:
        """The first constants of layers, by operator name, where they are floating tensors."""
        found = []
        for name in names:
            op = self.reading.graph.ops[name]
            for value in op.inputs[1:2] or op.inputs[:1]:
                tensor = _tensor_at(self.reading.gm, self.reading.attributes.get(value, ""))
                found += [tensor] if tensor is not None else []
        return found

    def projected(self, frame: Frame) -> TracedModel:
        """The reading as the GraphModule of a frame has it: its nodes stand for its operators."""
        gm: Any = frame.module
        made = TracedModel(gm)
        made._graph, made.constants = self.reading.graph, self.reading.constants
        made.infos, made.attributes = self.reading.infos, self.reading.attributes
        for node in self.recording.gm.graph.nodes:
            origin = self.origin(node)
            if node.meta.get("bnpass_frame") is frame and origin is not None:
                origin.meta.setdefault(META, node.meta.get(META))
                if node in self.reading.values:
                    made.values.setdefault(origin, self.reading.values[node])
        for table, target in ((self.reading.nodes, made.nodes),
                              (self.reading.origins, made.origins)):  # fmt: skip
            for name, node in table.items():
                origin = self.origin(node)
                if node.meta.get("bnpass_frame") is frame and origin is not None:
                    target[name] = origin
        for key, slot in self.reading.slots.items():
            if key[0] in made.nodes:
                origin = made.nodes[key[0]]
                inner = str(origin.target) if slot.module else ""
                made.slots[key] = type(slot)(origin, slot.name, inner, slot.scalar)
        return made

    def op_node(self, op: Op) -> fx.Node | None:
        """The node that stands for an operator; None where it is a part of one."""
        return self.reading.nodes.get(op.name)


def _is_part(one: fx.Node, other: fx.Node) -> bool:
    """Whether ``one`` is an element of ``other``, or of such an element."""
    while one.target is operator.getitem and isinstance(one.args[0], fx.Node):
        one = one.args[0]
        if one is other:
            return True
    return False


def _tensor_at(module: nn.Module, path: str) -> torch.Tensor | None:
    held: Any = module
    for part in path.split(".") if path else ():
        held = getattr(held, part, None)
    return held if isinstance(held, torch.Tensor) else None
