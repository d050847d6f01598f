"""Shape arithmetic as Python numbers: ``x.size(0)`` where ONNX has Shape, Gather, Concat ...

A value of known length whose entries are constants or sizes of tensors is a :class:`Sizes`. What
this file does not know how to compute with is made a small tensor of and goes on as one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from bnpass.importer.functions.shape import divide
from bnpass.importer.node import ImportedNode
from bnpass.importer.values import Const, Entry, Sizes, Value

Entries = tuple[Entry, ...]
Rule = Callable[[ImportedNode, Sequence[Entries]], "Entries | None"]
Rank = Callable[[str], "int | None"]

LONGEST = 64
"""Constants up to this many entries take part; axes have far fewer."""


def evaluate(op: ImportedNode, rank: Rank) -> Value | None:
    """The output of a node of shape arithmetic; None for a node that is none.

    Args:
        op: the node and its inputs.
        rank: the number of axes of a value, None where it is not known.
    """
    kind = op.node.op_type
    if kind in ("Shape", "Size"):
        return _of_tensor(op, rank)
    rule = _RULES.get(kind)
    if rule is None or not any(isinstance(v, Sizes) for v in op.inputs):
        return None
    entries = [_entries(v) for v in op.inputs]
    if any(e is None for e in entries):
        return None
    made = rule(op, [e for e in entries if e is not None])
    return None if made is None else _value(made, scalar=_is_scalar(op))


def shape_of_result(op: ImportedNode) -> Entries | None:
    """The sizes of a tensor that is filled with one number, where they are all known by name."""
    kind, index = op.node.op_type, 0 if op.node.op_type == "ConstantOfShape" else 1
    if kind == "Expand" and op.shape(0) != ():
        return None
    if kind not in ("Expand", "ConstantOfShape") or not isinstance(op.inputs[index], Sizes):
        return None
    return _entries(op.inputs[index])


def _of_tensor(op: ImportedNode, rank: Rank) -> Value | None:
    sizes = _shape(op, rank(op.node.input[0]))
    if sizes is None:
        return None
    if op.node.op_type == "Shape":
        return _value(sizes[op.attr("start", 0) : op.attr("end")], scalar=False)
    total: Entry = 1
    for size in sizes:
        total = size if total == 1 else _pair(op, operator.mul, total, size)
    return _value((total,), scalar=True)


def _shape(op: ImportedNode, rank: int | None) -> Entries | None:
    value = op.inputs[0]
    if isinstance(value, Const):
        return value.shape
    if isinstance(value, Sizes):
        return () if value.scalar else (len(value.entries),)
    assert value is not None
    if value.sizes is not None:
        op.store.idle.append(value.node)
        return value.sizes
    if rank is None:
        return None
    made = op.store.shared.setdefault(("sizes", value.node), {})
    return tuple(_size(op, value.node, axis, made) for axis in range(rank))


def _size(op: ImportedNode, node: fx.Node, axis: int, made: dict[int, fx.Node]) -> fx.Node:
    if axis not in made:
        made[axis] = op.method("size", node, axis)
        op.store.idle.append(made[axis])
    return made[axis]


def _entries(value: Value | None) -> Entries | None:
    """The entries of sizes, or of a short constant of whole numbers."""
    if isinstance(value, Sizes):
        return value.entries
    if not isinstance(value, Const) or value.dtype != torch.int64:
        return None
    if len(value.shape) > 1 or value.numel > LONGEST:
        return None
    return tuple(value.tensor.reshape(-1).tolist())


def _value(entries: Entries, *, scalar: bool) -> Value:
    if all(isinstance(e, int) for e in entries):
        numbers: Any = entries[0] if scalar else entries
        return Const(tensor=torch.tensor(numbers, dtype=torch.int64))
    return Sizes(entries, scalar)


def _is_scalar(op: ImportedNode) -> bool:
    """Whether the result has rank 0."""
    kind = op.node.op_type
    if kind == "Squeeze":
        return True
    if kind == "Gather":
        return _rank(op.inputs[1]) == 0
    if kind == "Reshape":
        return op.shape(1) == (0,)
    return kind not in ("Unsqueeze", "Concat", "Slice") and not any(map(_rank, op.inputs))


def _rank(value: Value | None) -> int:
    if isinstance(value, Sizes):
        return 0 if value.scalar else 1
    return len(value.shape) if isinstance(value, Const) else 0


# -- one function an operator ----------------------------------------------------------------------


def _numbers(entries: Entries) -> list[int] | None:
    found = [e for e in entries if isinstance(e, int)]
    return found if len(found) == len(entries) else None


def _gather(_op: ImportedNode, inputs: Sequence[Entries]) -> Entries | None:
    data, index = inputs[0], _numbers(inputs[1])
    if index is None or any(not -len(data) <= i < len(data) for i in index):
        return None
    return tuple(data[i] for i in index)


def _slice(op: ImportedNode, inputs: Sequence[Entries]) -> Entries | None:
    if op.opset < 10:
        starts, ends = op.attr("starts"), op.attr("ends")
        return inputs[0][starts[0] : ends[0]] if len(starts) == 1 else None
    given = [_numbers(e) for e in inputs[1:]]
    if any(numbers is None or len(numbers) != 1 for numbers in given):
        return None
    first, last, *rest = (numbers[0] for numbers in given if numbers)
    step = rest[1] if len(rest) > 1 else 1
    return None if step < 1 else inputs[0][first:last:step]


def _concat(_op: ImportedNode, inputs: Sequence[Entries]) -> Entries | None:
    return tuple(entry for entries in inputs for entry in entries)


def _one(_op: ImportedNode, inputs: Sequence[Entries]) -> Entries | None:
    return inputs[0] if len(inputs[0]) == 1 else None


def _reshape(_op: ImportedNode, inputs: Sequence[Entries]) -> Entries | None:
    """A vector, or a scalar, again."""
    shape = _numbers(inputs[1])
    fits = shape is not None and shape in ([], [-1], [len(inputs[0])])
    return inputs[0] if fits and (shape or len(inputs[0]) == 1) else None


def _unsqueeze(op: ImportedNode, inputs: Sequence[Entries]) -> Entries | None:
    axes = op.attr("axes") if op.opset < 13 else inputs[1]
    scalar = isinstance(op.inputs[0], Sizes) and op.inputs[0].scalar
    return inputs[0] if scalar and tuple(axes) in ((0,), (-1,)) else None


def _cast(op: ImportedNode, inputs: Sequence[Entries]) -> Entries | None:
    from onnx import TensorProto

    return inputs[0] if op.attr("to") == TensorProto.INT64 else None


def _same(_op: ImportedNode, inputs: Sequence[Entries]) -> Entries | None:
    return inputs[0]


def _elementwise(function: Callable[[Any, Any], Any]) -> Rule:
    def rule(op: ImportedNode, inputs: Sequence[Entries]) -> Entries | None:
        a, b = inputs
        if 1 not in (len(a), len(b)) and len(a) != len(b):
            return None
        length = max(len(a), len(b)) if a and b else 0
        wide = [e * length if len(e) == 1 else e for e in (a, b)]
        return tuple(_pair(op, function, x, y) for x, y in zip(*wide, strict=True))

    return rule


def _pair(op: ImportedNode, function: Callable[[Any, Any], Any], a: Entry, b: Entry) -> Entry:
    if isinstance(a, int) and isinstance(b, int):
        return int(function(a, b))
    made: fx.Node = op.call(function, a, b)
    op.store.idle.append(made)
    return made


_RULES: dict[str, Rule] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _one,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Cast": _cast,
    "Identity": _same,
    "Add": _elementwise(operator.add),
    "Sub": _elementwise(operator.sub),
    "Mul": _elementwise(operator.mul),
    "Div": _elementwise(divide),
}
