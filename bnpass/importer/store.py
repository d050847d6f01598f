"""The tensors of the module under construction: parameters, constants, statistics, their origin."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from bnpass.importer.gates import Order
from bnpass.importer.naming import Paths, identifier
from bnpass.importer.values import Const, to_array


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the imported module stands in the ONNX model.

    Attributes:
        name: the initializer, or the output of the Constant or Identity node, that holds it.
        uses: (first output, input index) of the nodes that see its new value, if other readers of
            ``name`` must not (shared BN statistics); else empty, for all readers.
        gates: the file's blocks along axis 1 in the module's order, where the two differ.
        computed: what the model's own nodes make of a statistic that has no tensor in the file.
    """

    name: str
    uses: tuple[tuple[str, int], ...] = ()
    gates: Order = ()
    computed: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass
class HeldTensor:
    """A tensor and the attribute paths under which the module holds it."""

    tensor: torch.Tensor
    trainable: bool
    origin: Origin | None
    paths: list[str] = field(default_factory=list)


class Store:
    """Collects tensors by ONNX name while the graph is built; :meth:`install` makes attributes.

    ``literals`` are the names of constants that some reader takes as a plain number: as parameters
    they are not trained, for that reader would not see it.

    ``shared`` is the handlers' own memory of what they have built (layers that are called twice);
    ``idle`` are values that they found another way around: unless others read them, they go.
    """

    def __init__(self, graph: torch.fx.Graph) -> None:
        self._graph = graph
        self._paths = Paths()
        self._slots: dict[object, HeldTensor] = {}
        self._nodes: dict[object, torch.fx.Node] = {}
        self._modules: dict[str, nn.Module] = {}
        self.shared: dict[object, Any] = {}
        self.idle: list[torch.fx.Node] = []
        self.literals: set[str] = set()

    def read(self, const: Const, hint: str, *, trainable: bool) -> torch.fx.Node:
        """A get_attr node for a constant: one tensor and one node an ONNX name."""
        slot = self._slot(const, trainable)
        if not slot.paths:
            slot.paths.append(
                self._paths.claim(const.name or f"constants.{identifier(hint)}")
            )
        key = const.name or id(const)
        if key not in self._nodes:
            node = self._graph.create_node("get_attr", slot.paths[0])
            node.meta["constant"] = const  # keeps a computed constant, and so its id, alive
            self._nodes[key] = node
        return self._nodes[key]

    def module(self, name: str, module: nn.Module) -> str:
        """Place a module at a path derived from ``name`` and return the path."""
        path = self._paths.claim(name)
        self._modules[path] = module
        return path

    def tie(self, const: Const, path: str) -> None:
        """Let the parameter ``path`` of a module be the one of this ONNX name."""
        self._slot(const, trainable=True).paths.append(path)

    def own(self, const: Const, path: str, use: tuple[str, int]) -> None:
        """Give the buffer ``path`` of a module a tensor of its own, or add a use to it."""
        slot = self._slots.get(path)
        if slot is None:
            computed = None if const.name else to_array(const.tensor.clone())
            origin = Origin(const.name, computed=computed)
            slot = self._slots[path] = HeldTensor(const.tensor.clone(), False, origin, [path])
        assert slot.origin is not None
        slot.origin = replace(slot.origin, uses=(*slot.origin.uses, use))

    def install(self, root: nn.Module) -> dict[str, Origin]:
        """Make every tensor an attribute of ``root``; return path -> origin of what can change."""
        for path, module in self._modules.items():
            parent, name = _parent(root, path)
            parent.add_module(name, module)
        origins: dict[str, Origin] = {}
        for slot in self._slots.values():
            value = self._parameter(slot) if slot.trainable else slot.tensor
            for path in slot.paths:
                _set(root, path, value)
                if slot.origin is not None and (slot.trainable or slot.origin.uses):
                    origins[path] = slot.origin
        for node in self._nodes.values():
            node.meta.pop("constant", None)
        return origins

    def _parameter(self, slot: HeldTensor) -> nn.Parameter:
        fixed = slot.origin is not None and slot.origin.name in self.literals
        return nn.Parameter(slot.tensor, requires_grad=not fixed)

    def _slot(self, const: Const, trainable: bool) -> HeldTensor:
        key: object = const.name or id(const)
        slot = self._slots.get(key)
        if slot is None:
            origin = Origin(const.name, gates=const.gates) if const.name else None
            slot = self._slots[key] = HeldTensor(const.tensor, False, origin)
        slot.trainable |= trainable and bool(const.name) and const.dtype.is_floating_point
        return slot


def _parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    *folders, name = path.split(".")
    for folder in folders:
        child = root._modules.get(folder)
        if child is None:
            child = nn.Module()
            root.add_module(folder, child)
        root = child
    return root, name


def _set(root: nn.Module, path: str, value: torch.Tensor) -> None:
    parent, name = _parent(root, path)
    if isinstance(value, nn.Parameter):
        parent.register_parameter(name, value)
    else:
        parent._parameters.pop(name, None)
        parent._buffers.pop(name, None)
        parent.register_buffer(name, value)
