"""Sizes of free dimensions at which a model's shapes fit each other, found without running it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import onnx

from bnpass.ir.graph import Dim
from bnpass.onnx_model import shapes
from bnpass.onnx_model.attributes import attribute, is_onnx
from bnpass.onnx_model.inference import Known
from bnpass.onnx_model.inference.layers import of_inputs

LARGEST = 1024
"""Sizes are tried up to this one."""

PATIENCE = 5.0
"""Seconds that the search may take."""

_FEW = (16, 7, 1, 32)  # a dimension that takes all of these is free indeed


class Fitting:
    """Tries sizes on a model without its weights.

    Args:
        model: with the free dimensions.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._light = shapes.without_weights(model)
        self._free = [
            (f"{value.name}:{axis}" if not dim.dim_param else dim.dim_param, dim)
            for value in self._light.graph.input
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
            if not dim.HasField("dim_value")
        ]
        self._end = time.monotonic() + PATIENCE

    def sizes(self, names: Sequence[str], known: Mapping[str, int]) -> dict[str, int]:
        """Sizes of free dimensions that fit; of what any size fits, none.

        First each for itself, as far as the model leaves it no choice; then one for all others.

        Args:
            names: of the dimensions, unnamed ones as ``input:axis``.
            known: of other dimensions.

        Returns:
            Sizes by name; empty where the search found no end in time.
        """
        found = dict(known)
        for name in names:
            if not all(self.fits({**found, name: size}) for size in _FEW):
                size = self._first(lambda n, name=name: {**found, name: n})  # type: ignore[misc]
                if size is not None:
                    found[name] = size
        rest = [name for name in names if name not in found]
        size = self._first(lambda n: {**found, **dict.fromkeys(rest, n)}) if rest else None
        if size is not None:
            found.update(dict.fromkeys(rest, size))
        return {name: size for name, size in found.items() if name in names}

    def _first(self, sizes: Callable[[int], Mapping[str, int]]) -> int | None:
        for size in range(1, LARGEST + 1):
            if time.monotonic() > self._end:
                return None
            if self.fits(sizes(size)):
                return size
        return None

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Whether no node of the main graph refuses its operands' shapes."""
        for name, dim in self._free:
            if name in sizes:
                dim.dim_value = sizes[name]
            elif dim.HasField("dim_value"):
                dim.ClearField("dim_value")
                if ":" not in name:
                    dim.dim_param = name
        known = shapes.infer(self._light, trust=False)[()]
        return not any(_refuses(node, known) for node in self._light.graph.node if is_onnx(node))


def _refuses(node: onnx.NodeProto, known: Known) -> bool:
    """Whether a node cannot take what it reads."""
    wanted = of_inputs(node, known.dims)
    if any(_apart(known.dims(name), dims) for name, dims in wanted.items()):
        return True
    own = _RULES.get(node.op_type)
    return own is not None and own(node, known)


def _apart(a: Sequence[Dim] | None, b: Sequence[Dim] | None) -> bool:
    if a is None or b is None or len(a) != len(b):
        return False
    return any(isinstance(x, int) and isinstance(y, int) and x != y
               for x, y in zip(a, b, strict=True))  # fmt: skip


def _product(node: onnx.NodeProto, known: Known) -> bool:
    a, b = (known.dims(name) for name in node.input[:2])
    if not a or not b:
        return False
    k, n = a[-1], b[-2 if len(b) > 1 else -1]
    return isinstance(k, int) and isinstance(n, int) and k != n


def _broadcast(node: onnx.NodeProto, known: Known) -> bool:
    found = [dims for dims in map(known.dims, filter(None, node.input)) if dims is not None]
    for axis in range(1, max(map(len, found), default=0) + 1):
        sizes = {d[-axis] for d in found if len(d) >= axis and isinstance(d[-axis], int)}
        if len(sizes - {1}) > 1:
            return True
    return False


def _reshape(node: onnx.NodeProto, known: Known) -> bool:
    source, target = known.dims(node.input[0]), known.known(node.input[1])
    if source is None or target is None:
        return False
    wanted = [
        source[i] if size == 0 and not attribute(node, "allowzero", 0) and i < len(source) else size
        for i, size in enumerate(target.reshape(-1))
    ]
    if not all(isinstance(d, int) for d in (*source, *wanted)):
        return False
    total, rest = math.prod(source), math.prod(d for d in wanted if d != -1)  # type: ignore[arg-type,misc]
    return rest == 0 or (total % rest != 0 if -1 in wanted else total != rest)


_RULES: dict[str, Callable[[onnx.NodeProto, Known], bool]] = {
    "MatMul": _product, "Reshape": _reshape,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min", "Sum"), _broadcast),
}  # fmt: skip
