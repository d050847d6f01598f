"""Legal ranges of integer inputs, read off the graph: which values index what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import onnx

from bnpass.ir.operators import RECURRENT, kinds
from bnpass.onnx_model.attributes import attribute
from bnpass.onnx_model.shapes import stated
from bnpass.onnx_model.signature import inputs_of

_CARRIES = kinds(
    lambda row: row.repeats or row.moves or (row.reads_part and not row.layer)
) | {"Concat", "Expand", "Tile"}
"""Operators behind which the values are still the same numbers, and no means of some."""

_SHAPES = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "Resize": (2, 3),
    "Range": (0, 1, 2),
    "Pad": (1,),
    "TopK": (1,),
    "Loop": (0,),
}
"""Inputs that say how large something is: no random value is legal there."""


Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Range:
    """Integers from ``low`` up to but not including ``high``; or a shape, which has no range."""

    low: int = 0
    high: int = 2
    shape: bool = False


def ranges(model: onnx.ModelProto) -> dict[str, Range]:
    """Return the legal range of every input that is used as an index, a length or a shape."""
    known: list[Shapes] = []

    def sizes() -> Shapes:
        known[:] = known or [_known_shapes(model)]
        return known[0]

    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            if name:
                readers[name].append((node, slot))
    found = {}
    for port in inputs_of(model):
        limits = [r for node, slot in _uses(port.name, readers) if (r := _use(node, slot, sizes))]
        if limits:
            found[port.name] = _narrowest(limits)
    return found


def _known_shapes(model: onnx.ModelProto) -> Shapes:
    shapes: Shapes = {t.name: list(t.dims) for t in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.value_info]:
        dims = stated(value)
        if dims is not None:  # 0 is unknown
            shapes.setdefault(value.name, [d if isinstance(d, int) else 0 for d in dims])
    for node in model.graph.node:
        held = attribute(node, "value", None) if node.op_type == "Constant" else None
        if isinstance(held, onnx.TensorProto):
            shapes[node.output[0]] = list(held.dims)
    return shapes


def _uses(
    name: str, readers: dict[str, list[tuple[onnx.NodeProto, int]]]
) -> list[tuple[onnx.NodeProto, int]]:
    """Follow a value through what carries it on; return (node, input slot) where it is used."""
    found, queue, seen = [], [name], {name}
    while queue:
        for node, slot in readers.get(queue.pop(), ()):
            found.append((node, slot))
            carried = node.op_type in _CARRIES and (slot == 0 or node.op_type == "Concat")
            for output in node.output if carried else ():
                if output not in seen:
                    seen.add(output)
                    queue.append(output)
    return found


def _use(node: onnx.NodeProto, slot: int, sizes: Callable[[], Shapes]) -> Range | None:
    if slot in _SHAPES.get(node.op_type, ()):
        return Range(shape=True)
    if node.op_type in ("Gather", "GatherElements", "GatherND") and slot == 1:
        shape = sizes().get(node.input[0])
        axis = attribute(node, "axis", 0)
        size = shape[axis] if shape and -len(shape) <= axis < len(shape) else 0
        return Range(0, size) if size else None
    if node.op_type in RECURRENT and slot == 4:
        shape = sizes().get(node.input[0])
        length = shape[attribute(node, "layout", 0)] if shape else 0
        return Range(1, length + 1) if length else Range(1, 2)
    return None


def _narrowest(limits: list[Range]) -> Range:
    if any(r.shape for r in limits):
        return Range(shape=True)
    return Range(max(r.low for r in limits), min(r.high for r in limits))
