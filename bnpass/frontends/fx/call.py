"""What a row of the vocabulary is given: one node of the graph, and how to write operators down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from bnpass.frontends.fx.info import META, Info
from bnpass.ir.graph import Constant, Dim, Op

if TYPE_CHECKING:
    from bnpass.frontends.fx.read import TracedModel


class UnknownError(Exception):
    """A node says something that the vocabulary has no word for: no map passes it."""


@dataclass(frozen=True)
class TensorSlot:
    """Where an operator's constant input is written in the graph.

    Attributes:
        node: the node.
        name: parameter of the called function, or attribute of the called module.
        module: path of the module, or empty.
        scalar: it is a Python number there and cannot become a tensor.
    """

    node: fx.Node
    name: str
    module: str = ""
    scalar: bool = False


class Call:
    """One node, with its values as the neutral view names them."""

    def __init__(self, reading: TracedModel, node: fx.Node, module: nn.Module | None) -> None:
        self.reading, self.node, self.module = reading, node, module
        self.path = str(node.target) if module is not None else ""
        self.name = reading.op_name(node)

    # --- what is there ---------------------------------------------------------------------------

    def info(self, argument: Any) -> Info:
        """Shape and type of an argument that has to be a tensor."""
        value = self.reading.values.get(argument) if isinstance(argument, fx.Node) else None
        info = self.reading.infos.get(value) if isinstance(value, str) else None
        if info is None:
            raise UnknownError("an argument is no tensor")
        return info

    def shape(self, argument: Any) -> tuple[Dim, ...]:
        """The dimensions of an argument."""
        return self.info(argument).shape

    @property
    def result(self) -> Info:
        """Shape and type of what the node makes."""
        info = self.node.meta.get(META)
        if not isinstance(info, Info):
            raise UnknownError("it makes no tensor")
        return info

    @property
    def results(self) -> tuple[Any, ...]:
        """What a node with several results makes."""
        info = self.node.meta.get(META)
        if not isinstance(info, tuple):
            raise UnknownError("it makes one value")
        return info

    def axis(self, argument: Any, dim: Any) -> int:
        """A dimension's number, counted from the front."""
        rank = len(self.shape(argument))
        if not isinstance(dim, int):
            raise UnknownError("a dimension is computed")
        return dim + rank if dim < 0 else dim

    def training(self, flag: Any) -> bool:
        """A flag that may be the network's own mode."""
        if isinstance(flag, fx.Node):
            if flag.op != "call_module":
                raise UnknownError("a mode is computed")
            return self.reading.gm.get_submodule(str(flag.target)).training
        return bool(flag)

    # --- values ----------------------------------------------------------------------------------

    def value(self, argument: Any, like: Any = None) -> str:
        """The value name of an argument; a number becomes a constant of the type of ``like``."""
        if argument is None:
            return ""
        if isinstance(argument, fx.Node):
            value = self.reading.values.get(argument)
            if not isinstance(value, str):
                raise UnknownError("an argument is no tensor")
            self.info(argument)
            return value
        if isinstance(argument, bool | int | float) and like is not None:
            return self._number(argument, self.info(like).dtype)
        raise UnknownError(f"an argument is a {type(argument).__name__}")

    def _number(self, number: float, dtype: str) -> str:
        return self.constant("number", np.asarray(number, numpy_dtype(dtype)), dtype)

    def constant(self, role: str, array: np.ndarray, dtype: str | None = None) -> str:
        """A constant of this node's own."""
        name = self.reading.unique(f"{self.name}#{role}")
        shape, kind = array.shape, dtype or array.dtype.name
        self.reading.constants[name] = Constant(name, lambda: array, shape, kind)
        return name

    def ints(self, role: str, numbers: Sequence[int]) -> str:
        """Axes, starts, pads and the like as a constant input."""
        return self.constant(role, np.asarray(list(numbers), np.int64))

    def scalar(self, role: str, number: int) -> str:
        """One whole number as a constant input."""
        return self.constant(role, np.asarray(number, np.int64))

    def parameter(self, name: str) -> str:
        """A parameter or buffer of the called module; empty where it has none."""
        tensor = getattr(self.module, name, None)
        if tensor is None:
            return ""
        if name == "bias" and f"{name}_mask" in getattr(self.module, "_buffers", {}):
            return self.reading.pin(f"{self.path}.{name}", tensor, "a pruned bias")
        return self.reading.tensor(f"{self.path}.{name}", tensor)

    def stacked(self, role: str, tensors: Sequence[torch.Tensor]) -> str:
        """Several tensors as one constant, side by side on a new first axis."""
        dtype = str(tensors[0].dtype).removeprefix("torch.")

        def load() -> np.ndarray:
            return np.stack([to_numpy(t) for t in tensors])

        name = self.reading.unique(f"{self.path}.{role}")
        self.reading.constants[name] = Constant(
            name, load, (len(tensors), *tensors[0].shape), dtype
        )
        return name

    def paired(self, pairs: Sequence[tuple[str, str]]) -> str:
        """Pairs of the module's vectors, each end to end, as one constant (pairs, 2 * size)."""
        held = [(getattr(self.module, a), getattr(self.module, b)) for a, b in pairs]

        def load() -> np.ndarray:
            return np.stack([np.concatenate([to_numpy(a), to_numpy(b)]) for a, b in held])

        name = self.reading.unique(f"{self.path}.{pairs[0][0]}")
        shape, dtype = (len(held), 2 * held[0][0].numel()), str(held[0][0].dtype)
        self.reading.constants[name] = Constant(name, load, shape, dtype.removeprefix("torch."))
        return name

    # --- operators -------------------------------------------------------------------------------

    def emit(
        self,
        kind: str,
        inputs: Sequence[str],
        attrs: dict[str, Any] | None = None,
        *,
        slots: dict[int, str] | None = None,
        scalars: Sequence[int] = (),
    ) -> None:
        """The operator that makes the node's value.

        Args:
            kind, inputs, attrs: see :class:`bnpass.ir.graph.Op`.
            slots: constant inputs that a fold may change: the function's parameter or the
                module's attribute that holds each, by input index.
            scalars: those of them that can only hold a number.
        """
        outputs = self.reading.bind(self.node)
        self.reading.add(Op(self.name, kind, list(inputs), outputs, attrs or {}), self.node)
        for index, name in (slots or {}).items():
            slot = TensorSlot(self.node, name, self.path, index in scalars)
            self.reading.slots[self.name, index] = slot

    def step(
        self, kind: str, inputs: Sequence[str], info: Info, attrs: dict[str, Any] | None = None
    ) -> str:
        """An operator in front of the node's last one, which moves entries only."""
        name = self.reading.unique(f"{self.name}#{kind.lower()}")
        self.reading.infos[name] = info
        self.reading.add(Op(name, kind, list(inputs), [name], attrs or {}), self.node, whole=False)
        return name

    def part(self, index: int, kind: str, inputs: Sequence[str], attrs: dict[str, Any]) -> None:
        """The operator that makes one of the node's several results."""
        outputs = self.reading.bind(self.node)
        name = self.reading.unique(f"{self.name}#{index}")
        op = Op(name, kind, list(inputs), [outputs[index]], attrs)
        self.reading.add(op, self.node, whole=False)


def numpy_dtype(name: str) -> Any:
    """A numpy type that holds the values of a torch type."""
    return np.float32 if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2") else np.dtype(name)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers; bfloat16 as float32."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):  # no data: what is planned needs none
        return np.zeros(tuple(tensor.shape), numpy_dtype(str(tensor.dtype).removeprefix("torch.")))
    held = tensor.detach().cpu()
    if held.dtype == torch.bfloat16:
        held = held.float()
    return np.asarray(held.resolve_conj().numpy())
