"""The nodes of one region evaluated: as they are, on squared operands, or with moved weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from bnpass.errors import InputError
from bnpass.onnx_model.attributes import attribute, is_onnx
from bnpass.onnx_model.constants import dtype_name
from bnpass.verdict.bounds import SQUARED, SQUARED_CONSTANTS, squared
from bnpass.verdict.evaluator import UnknownOperatorError, compute
from bnpass.verdict.evaluator.linear import LARGE, Squares
from bnpass.verdict.evaluator.run import wide
from bnpass.verdict.side import Array, Side

_HALF_STEP = 0.54
"""Steps that a rounded code may be off; above 0.5 for the other roundings, as squares add up."""


class Stepped:
    """New codes of a bias: each may be off by half a step, and nothing else of it.

    Args:
        old, new: the graphs.
        unit: what a bound is multiplied by before a difference is held against it.
    """

    def __init__(self, old: Side, new: Side, unit: float) -> None:
        self.old, self.new, self.unit = old, new, unit

    def square(self, node: onnx.NodeProto, scale_squared: Callable[[], Array]) -> Array | None:
        """What to add to the squares that a node makes; None where it makes no such bias."""
        if not is_onnx(node, "DequantizeLinear"):
            return None
        codes, before = (side.tensor(node.input[0]) for side in (self.new, self.old))
        if codes is None or codes.data_type != onnx.TensorProto.INT32 or len(codes.dims) != 1:
            return None
        array = self.new.whole.view(codes)
        if before is not None and np.array_equal(self.old.whole.view(before), array):
            return None
        return scale_squared() * (_HALF_STEP / self.unit) ** 2


class RegionRun:
    """One evaluation of some nodes of a graph.

    Attributes:
        kinds: numpy's names of the types of the floating constants that were read.
    """

    def __init__(
        self,
        side: Side,
        nodes: list[int],
        given: Mapping[str, Array],
        *,
        squares: bool = False,
        stepped: Stepped | None = None,
        move: tuple[float, np.random.Generator] | None = None,
    ) -> None:
        self.side, self.squares, self.stepped, self.move = side, squares, stepped, move
        self.kinds: set[str] = set()
        self.values: dict[str, Array] = dict(given)
        self.moved: dict[str, Array] = {}
        resized = (side.graph.node[i] for i in nodes if is_onnx(side.graph.node[i], *_RESIZE))
        self._sizes = {name for node in resized for name in node.input[1:]}
        for index in nodes:
            self._compute(side.graph.node[index])

    def _compute(self, node: onnx.NodeProto) -> None:
        table, whole = None, self.side.whole
        fixed = (self.squares or node.op_type == "Cast") and all(
            self.side.is_constant(name) for name in node.output if name
        )
        if self.squares:
            table = SQUARED_CONSTANTS if fixed else SQUARED
        made = compute(node, self._look_up, whole.opset, whole.functions, table)
        if fixed and is_onnx(node, "Cast") and not self.squares:
            made = [_rounded(node, array) for array in made]
        self._keep(node, made)

    def _keep(self, node: onnx.NodeProto, made: Sequence[Array | None]) -> None:
        """Note a node's outputs; what a Constant node holds is a constant as any other."""
        for name, array in zip(node.output, made, strict=False):
            if name and array is not None:
                fixed = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
                self.values[name] = self._constant(name, array, _held(node)) if fixed else array
        more = self.stepped and self.stepped.square(node, lambda: self._look_up(node.input[1]))
        if more is not None:
            self.values[node.output[0]] = self.values[node.output[0]] + more

    def value(self, name: str) -> Array:
        """A value that was made or given."""
        return wide(self._look_up(name))

    def _look_up(self, name: str) -> Array:
        found = self.values.get(name)
        if found is not None:
            return found
        tensor = self.side.tensor(name)
        if tensor is None:
            node = self.side.constant_node(name)
            if node is None:
                raise UnknownOperatorError(f"{name!r} comes from outside of the region")
            self._compute(node)
            if name not in self.values:
                raise InputError(f"{node.op_type} does not make {name!r} of these numbers")
            return self.values[name]
        return self._constant(name, self.side.whole.view(tensor))

    def _constant(self, name: str, array: Array, kind: str = "") -> Array:
        """A constant; ``kind``: its type in the file, where the array has another by now."""
        if array.dtype.kind == "f" or "float" in array.dtype.name:
            self.kinds.add(kind or array.dtype.name)
            if self.squares:
                if array.ndim == 2 and array.size > LARGE:
                    return Squares(array, lambda block: squared(wide(block)))  # type: ignore[return-value]
                return squared(wide(array))
            if self.move is not None and name not in self._sizes:
                unit, rng = self.move
                if name not in self.moved:
                    self.moved[name] = wide(array) * (1 + unit * rng.uniform(-1, 1, array.shape))
                return self.moved[name]
        return array


_RESIZE = ("Resize", "Upsample")
"""Operators whose scales say how large a result is: a moved one is another size."""


def _rounded(node: onnx.NodeProto, array: Array | None) -> Array | None:
    """A constant as a Cast leaves it: its rounding is the same in every run, and no error."""
    if array is None or array.dtype.kind != "f":
        return array
    kind = onnx.helper.tensor_dtype_to_np_dtype(int(attribute(node, "to", 0)))
    with np.errstate(over="ignore"):
        return wide(array.astype(kind))


def _held(node: onnx.NodeProto) -> str:
    """numpy's name of the type of what a Constant node holds."""
    tensor = attribute(node, "value")
    return "float32" if tensor is None else dtype_name(tensor.data_type) or ""
