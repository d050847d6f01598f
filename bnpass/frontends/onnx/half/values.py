"""The versions of values in a narrowed model: in float32, in the narrow type, or in both."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from bnpass.errors import RefusedError
from bnpass.onnx_model import shapes
from bnpass.onnx_model.messages import list_initializer, overwrite
from bnpass.onnx_model.names import Names

FLOAT = int(TensorProto.FLOAT)
KINDS = {"float16": int(TensorProto.FLOAT16), "bfloat16": int(TensorProto.BFLOAT16)}
SMALL = 1024
"""Elements: larger constants are weights, whatever they are read for."""

_WORTH = 64  # elements whose narrowing saves more than the Cast behind them takes
# What exporters put between a mask's one huge number and the scores; what bounds a division.
_MASKING = frozenset(
    {"Add", "Sub", "Mul", "Max", "Min", "Expand", "Tile", "Trilu", "Concat", "ScatterND",
     "ScatterElements", "Slice", "Unsqueeze", "Reshape", "Transpose", "Gather"}
)  # fmt: skip
_GUARDS = frozenset({"Add", "Sub", "Max", "Clip", "Where"})
_HUGE = 1e6  # from which on a number is no weight


class Values:
    """The values of one GraphProto and their versions by element type.

    Attributes:
        versions: {value: {element type: name}} of values of type float.
        tensors: initializers and constants of type float, converted when they are asked for.
        nodes: the new list of nodes.
    """

    def __init__(
        self, graph: onnx.GraphProto, types: shapes.ValueTypes, outer: Values | None
    ) -> None:
        self.graph, self.types, self.outer = graph, types, outer
        self.versions: dict[str, dict[int, str]] = {}
        self.tensors: dict[str, TensorProto] = {}
        self.constants: dict[str, onnx.NodeProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.shapes: set[str] = set()
        self.fixed: set[str] = {t.name for t in graph.initializer}

    def owner(self, name: str) -> Values | None:
        """The graph, here or around, that has a version of a float value."""
        if name in self.versions:
            return self
        return self.outer.owner(name) if self.outer is not None else None

    def known(self, name: str, group: str) -> bool:
        """Whether a name is in a set of this graph or of one around it."""
        inside = name in getattr(self, group)
        return inside or (self.outer is not None and self.outer.known(name, group))


class Versions:
    """Makes a version of a value where it is asked for and does not exist yet.

    Args:
        model: the model, changed in place.
        dtype: the narrow type.

    Attributes:
        kind: its element type.
        storage: weights are stored narrow even where they are read in float32.
        vanished: weights that were not zero and are now.
        largest: the largest number of the narrow type.
        fresh: makes a name that nothing in the model has yet.
    """

    def __init__(self, model: onnx.ModelProto, dtype: str) -> None:
        self.model, self.dtype, self.kind = model, dtype, KINDS[dtype]
        self.storage = False
        self.vanished = 0
        self.largest = _largest(dtype)
        self._np_dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.kind))
        self.fresh = Names(model).fresh

    def version(
        self, name: str, kind: int, scope: Values, reader: onnx.NodeProto | None
    ) -> str:
        """The name of a float value in a type, made in the graph that the value lives in."""
        owner = scope.owner(name)
        assert owner is not None
        versions = owner.versions[name]
        if kind in versions:
            return versions[kind]
        tensor = owner.tensors.get(name)
        if tensor is not None:
            stored = self._stored(tensor, kind)
            self._write(owner, name, self.kind if stored else kind, reader)
            if not stored:
                return versions[kind]
        source = next(iter(versions.values()))
        versions[kind] = self.fresh(f"{name}_{label(kind)}")
        owner.nodes.append(cast(source, versions[kind], kind))
        return versions[kind]

    def _stored(self, tensor: TensorProto, kind: int) -> bool:
        """Whether a weight that is read in float32 is stored narrow all the same (case 3)."""
        weight = len(tensor.dims) > 1 and elements(tensor) >= _WORTH
        return self.storage and kind == FLOAT and weight

    def _write(
        self, owner: Values, name: str, kind: int, reader: onnx.NodeProto | None
    ) -> None:
        """Store a constant in a type, under its own name if that is free yet."""
        versions, tensor = owner.versions[name], owner.tensors[name]
        array = onnx.numpy_helper.to_array(tensor)
        if kind != FLOAT:
            array = self.rounded(tensor, reader)
        new = self.fresh(f"{name}_{label(kind)}") if versions else name
        if name in owner.constants:
            held = onnx.numpy_helper.from_array(array, new)
            owner.nodes.append(onnx.helper.make_node("Constant", [], [new], value=held))
        elif versions:
            made = owner.graph.initializer.add(name=new)
            overwrite(made, array)
            if owner.outer is None:
                list_initializer(self.model, made)
        elif kind != FLOAT:
            if elements(tensor) <= SMALL:  # something may ask for the float32 numbers too
                owner.tensors[name] = onnx.numpy_helper.from_array(
                    onnx.numpy_helper.to_array(tensor).copy(), name)  # fmt: skip
            else:
                del owner.tensors[name]
            overwrite(tensor, array)
        versions[kind] = new

    def rounded(self, tensor: TensorProto, reader: onnx.NodeProto | None) -> np.ndarray:
        """A float32 tensor in the narrow type."""
        array = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            rounded = array.astype(self._np_dtype)
        lost = np.isinf(rounded.astype(np.float32)) & np.isfinite(array)
        if lost.any():
            if not _is_bound(reader, array[lost]):
                raise self._overflow(tensor, reader, float(np.abs(array[lost]).max()))
            rounded = np.clip(array, -self.largest, self.largest).astype(self._np_dtype)
        gone = (rounded == 0) & (array != 0)
        if gone.any() and _is_epsilon(reader, array):
            tiny = np.copysign(_smallest(self.dtype), array).astype(self._np_dtype)
            return np.where(gone, tiny, rounded)
        self.vanished += int(np.count_nonzero(gone))
        return rounded

    def _overflow(
        self, tensor: TensorProto, reader: onnx.NodeProto | None, worst: float
    ) -> RefusedError:
        where = f" of {reader.op_type} {reader.name or reader.output[0]!r}" if reader else ""
        return RefusedError(
            f"weight {tensor.name!r}{where} does not fit {self.dtype}: {worst:.4g} is above "
            f"{self.largest:.4g}",
            "bfloat16 has the range of float32 (--to bf16)" if self.dtype == "float16"
            else "deploy it in float32",
        )  # fmt: skip


def elements(tensor: TensorProto) -> int:
    """How many numbers a tensor holds."""
    return int(np.prod(tensor.dims, dtype=np.int64))


def _is_bound(reader: onnx.NodeProto | None, lost: np.ndarray) -> bool:
    """Whether numbers beyond the narrow type's range mean "as far as it goes".

    What no value exceeds is no bound; a mask's one huge number only has to win, or to lose.
    """
    if reader is None:
        return False
    if reader.op_type in ("Clip", "Where", "Pad"):
        return True
    return reader.op_type in _MASKING and bool((lost == lost[0]).all()) and _huge(lost[0])


def _huge(number: float) -> bool:
    return abs(float(number)) >= _HUGE


def _is_epsilon(reader: onnx.NodeProto | None, array: np.ndarray) -> bool:
    """Whether a small number only keeps a sum away from zero."""
    return reader is not None and reader.op_type in _GUARDS and array.size == 1


def _largest(dtype: str) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def _smallest(dtype: str) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).smallest_subnormal)  # type: ignore[no-untyped-call]


def label(kind: int) -> str:
    """numpy's name of an element type."""
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name)


def cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    """A Cast of one value to another."""
    return onnx.helper.make_node("Cast", [source], [result], name=f"{result}_cast", to=kind)
