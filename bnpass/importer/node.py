"""One ONNX node as the function that translates it sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import onnx
import torch

from bnpass.importer.functions.common import host_tensor, to_device
from bnpass.importer.naming import identifier
from bnpass.importer.store import Store
from bnpass.importer.values import Arg, Const, Sizes, Traced, Value
from bnpass.onnx_model.attributes import attributes, node_name


class NotExactError(Exception):
    """Raised by :meth:`ImportedNode.fail`; the importer gathers these into one UnsupportedError."""


class ImportedNode:
    """One ONNX node, its inputs, and the graph that is being built.

    While constants are folded (all inputs known, none a weight) the same calls compute at once:
    :meth:`tensor` returns tensors and :meth:`call` runs the function.

    Attributes:
        node: the ONNX node.
        opset: the opset of its domain.
        inputs: the input values; None where an optional one is left out.
        store: the tensors of the module.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        opset: int,
        inputs: Sequence[Value | None],
        graph: torch.fx.Graph,
        store: Store,
    ) -> None:
        self.node = node
        self.opset = opset
        self.inputs = tuple(inputs)
        self.store = store
        self._graph = graph
        self.attrs = attributes(node)
        traced = [v.host for v in self.inputs if isinstance(v, Traced | Sizes)]
        weights = [v for v in self.inputs if isinstance(v, Const) and v.is_weight]
        self.fold = not traced and not weights
        self.host = not weights and bool(traced) and all(traced)

    # -- what the node says ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The node's name, or its first output's for a node without one."""
        return node_name(self.node)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value (lists as tuples, text as str), or ``default``."""
        value = self.attrs.get(name, default)
        return tuple(value) if isinstance(value, list) else value

    def has(self, index: int) -> bool:
        """Whether input ``index`` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def wants(self, index: int) -> bool:
        """Whether output ``index`` is named."""
        return index < len(self.node.output) and bool(self.node.output[index])

    def dtype(self, index: int) -> torch.dtype | None:
        """The element type of an input, where it is known at import."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return value.dtype if value is not None else None

    def is_float(self, index: int = 0) -> bool:
        """Whether an input is known to be a floating point tensor."""
        dtype = self.dtype(index)
        return dtype is not None and dtype.is_floating_point

    def fail(self, reason: str) -> NoReturn:
        """Say that this node cannot be imported exactly, and why."""
        raise NotExactError(reason)

    # -- inputs ------------------------------------------------------------------------------------

    def const(self, index: int) -> torch.Tensor | None:
        """The value of an input that is the same in every run, else None."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return self._literal(value) if isinstance(value, Const) else None

    def shape(self, index: int) -> tuple[int, ...] | None:
        """The shape of a constant input; None for any other."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return value.shape if isinstance(value, Const) else None

    def tensor(self, index: int) -> Arg:
        """An input as a tensor; a float constant of the file becomes a parameter."""
        value = self.inputs[index]
        assert value is not None, f"input {index} of {self.name} is left out"
        return self._arg(value, trainable=isinstance(value, Const) and value.is_weight)

    def tensors(self) -> list[Arg]:
        """All inputs as tensors."""
        return [self.tensor(i) for i in range(len(self.inputs))]

    def weight(self, index: int) -> Arg:
        """A weight: a parameter whatever its size if it is a constant; None if left out."""
        if not self.has(index):
            return None
        value = self.inputs[index]
        assert value is not None
        return self._arg(value, trainable=True)

    def buffer(self, index: int) -> Arg:
        """An input that is never trained (a bound, a divisor); None if left out."""
        if not self.has(index):
            return None
        value = self.inputs[index]
        assert value is not None
        return self._arg(value, trainable=False)

    def operand(self, index: int, *, trainable: bool = True) -> Arg:
        """A tensor, or a Python number for a constant of rank 0."""
        value = self.inputs[index]
        if isinstance(value, Const) and value.shape == () and not self.fold:
            return self._literal(value).item()
        return self.tensor(index) if trainable else self.buffer(index)

    def ints(self, index: int, default: Sequence[int] | None = None) -> Any:
        """Sizes, axes or indices; ``default`` if left out.

        A tuple of ints, some of which may be fx nodes, where the number of them is known; else an
        fx node that makes a tensor.
        """
        if not self.has(index):
            return None if default is None else tuple(default)
        value = self.inputs[index]
        if isinstance(value, Const):
            return tuple(int(v) for v in value.tensor.reshape(-1).tolist())
        if isinstance(value, Sizes):
            return value.entries
        assert value is not None
        return value.node

    def number(self, index: int, default: Any = None) -> Any:
        """A scalar: a Python number if known, else an fx node; ``default`` if left out."""
        if not self.has(index):
            return default
        value = self.inputs[index]
        if isinstance(value, Const):
            if value.numel != 1:
                self.fail(f"input {index} is no scalar")
            return self._literal(value).reshape(()).item()
        if isinstance(value, Sizes):
            return value.entries[0]
        assert value is not None
        return value.node

    def _arg(self, value: Value, *, trainable: bool) -> Arg:
        if isinstance(value, Const):
            if self.fold:
                return self._literal(value)
            weight = trainable and bool(value.name) and value.dtype.is_floating_point
            if self.host and not weight and value.numel:
                return self.call(host_tensor, self._literal(value).tolist(), value.dtype)
            return self.store.read(value, self.name, trainable=trainable)
        node = self._tensor_of(value) if isinstance(value, Sizes) else value.node
        if value.host and not self.host:
            like = self._device_value()
            return node if like is None else self.call(to_device, node, like)
        return node

    def _literal(self, const: Const) -> torch.Tensor:
        """A constant's value, which from now on must stay what it is."""
        if const.name and const.dtype.is_floating_point:
            self.store.literals.add(const.name)
        return const.tensor

    def _tensor_of(self, sizes: Sizes) -> Arg:
        entries = sizes.entries[0] if sizes.scalar else list(sizes.entries)
        return self.call(host_tensor, entries, sizes.dtype)

    def _device_value(self) -> torch.fx.Node | None:
        """An input that lives on the module's device, to bring the others there."""
        for value in self.inputs:
            if isinstance(value, Traced) and not value.host:
                return value.node
        for value in self.inputs:
            if isinstance(value, Const) and value.is_weight:
                return self.store.read(value, self.name, trainable=True)
        return None

    # -- output ------------------------------------------------------------------------------------

    def call(self, function: Callable[..., Any], *args: Arg, **kwargs: Arg) -> Arg:
        """Call a function: now on constants, else as a node of the graph."""
        if self.fold:
            return function(*args, **kwargs)
        return self._create("call_function", function, args, kwargs)

    def method(self, name: str, *args: Arg, **kwargs: Arg) -> Arg:
        """Call a tensor method on the first argument."""
        if self.fold:
            return getattr(args[0], name)(*args[1:], **kwargs)
        return self._create("call_method", name, args, kwargs)

    def module(self, module: torch.nn.Module, path: str, *args: Arg) -> Arg:
        """Call a module that :meth:`Store.module` has placed at ``path``."""
        return module(*args) if self.fold else self._create("call_module", path, args, {})

    def items(self, value: Arg, count: int) -> tuple[Arg, ...]:
        """The first ``count`` elements of a function's tuple result."""
        import operator

        return tuple(self.call(operator.getitem, value, i) for i in range(count))

    def _create(self, kind: str, target: Any, args: Any, kwargs: Any) -> torch.fx.Node:
        name = identifier(self.name).lstrip("_") or None
        made = self._graph.create_node(kind, target, tuple(args), kwargs, name=name)
        made.meta["onnx"] = (self.node.name, self.node.op_type, tuple(self.node.output))
        return made

