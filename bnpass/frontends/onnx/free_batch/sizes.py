"""Shape arithmetic that holds the batch size: Shape -> Gather -> Concat -> Reshape and the like."""

from __future__ import annotations

from collections.abc import Sequence

from bnpass.frontends.onnx.free_batch.rules import (
    RULES,
    Batch,
    BatchedSizes,
    Rule,
    State,
    Times,
    View,
    rule,
)

Entry = int | Times | None


@rule("Shape")
def shape(view: View) -> Sequence[State]:
    """The dimensions, with N * factor at the batch."""
    batch = view.batch()
    entries: list[Entry] = [d if isinstance(d, int) else None for d in view.dims(0)]
    entries[batch.axis] = Times(batch.factor)
    return [_sizes(entries[view.attr("start", 0) : view.attr("end")])]


@rule("Size")
def size(view: View) -> Sequence[State]:
    """The number of elements."""
    batch, total = view.batch(), 1
    for axis, dim in enumerate(view.dims(0)):
        if axis == batch.axis:
            continue
        if not isinstance(dim, int):
            return [BatchedSizes((None,), scalar=True)]
        total *= dim
    return [BatchedSizes((Times(batch.factor * total),), scalar=True)]


def entries_of(view: View, index: int) -> list[Entry]:
    """The entries of an integer input, from shape arithmetic or a constant."""
    state = view.state(index)
    if isinstance(state, BatchedSizes):
        return list(state.entries)
    known = view.ints(index)
    if known is not None:
        return list(known)
    dims = view.dims(index)
    count = dims[0] if dims else 1
    if not isinstance(count, int):
        view.refuse(f"the length of {view.node.input[index]!r} is unknown")
    return [None] * count


def _sizes(entries: Sequence[Entry], scalar: bool = False) -> State:
    """Nothing to follow where the batch is not among the entries."""
    free = not any(isinstance(e, Times) for e in entries)
    return None if free and None not in entries else BatchedSizes(tuple(entries), scalar)


def arithmetic(view: View) -> Sequence[State]:
    """The rule of an operator whose input is shape arithmetic."""
    op, data = view.node.op_type, entries_of(view, 0)
    state = view.state(0)
    scalar = isinstance(state, BatchedSizes) and state.scalar
    if op in ("Cast", "Identity"):
        return [_sizes(data, scalar)]
    if op in ("Unsqueeze", "Squeeze"):
        return [_sizes(data, op == "Squeeze" and len(data) == 1)]
    if op == "Concat":
        joined = [e for i in range(len(view.node.input)) for e in entries_of(view, i)]
        return [_sizes(joined)]
    if op == "Gather":
        picks = view.known_ints(1, "the index")
        return [_sizes([data[i] for i in picks], scalar=len(view.dims(1)) == 0)]
    if op == "Slice":
        starts, ends, steps = (view.attr_or_ints(n, i) for n, i in _SLICE)
        return [_sizes(data[(starts or [0])[0] : (ends or [2**31])[0] : (steps or [1])[0]])]
    return [_product(view, data)]


_SLICE = (("starts", 1), ("ends", 2), ("steps", 4))


def _product(view: View, left: list[Entry]) -> State:
    right = entries_of(view, 1)
    width = max(len(left), len(right))
    pairs = zip(left * (width // len(left)), right * (width // len(right)), strict=True)
    multiply = view.node.op_type == "Mul"
    scalar = all(len(view.dims(i)) == 0 for i in (0, 1))
    return _sizes([_times(view, a, b) if multiply else _over(view, a, b) for a, b in pairs], scalar)


def _times(view: View, a: Entry, b: Entry) -> Entry:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if isinstance(b, Times):
        a, b = b, a
    if isinstance(a, Times) and isinstance(b, int):
        return Times(a.factor * b)
    if isinstance(a, Times):
        view.refuse("it multiplies the batch size by something unknown")
    return None


def _over(view: View, a: Entry, b: Entry) -> Entry:
    if isinstance(a, int) and isinstance(b, int) and b:
        return a // b
    if isinstance(a, Times) and isinstance(b, int) and b and a.factor % b == 0:
        return Times(a.factor // b)
    if isinstance(a, Times) or isinstance(b, Times):
        view.refuse("it divides by or rounds the batch size")
    return None


def either(op_type: str) -> Rule:
    """Shape arithmetic where an input is that, else the operator's rule for data."""
    data = RULES.get(op_type)

    def apply(view: View) -> Sequence[State]:
        states = [view.state(i) for i in range(len(view.node.input))]
        if any(isinstance(s, BatchedSizes) for s in states):
            if any(isinstance(s, Batch) for s in states) or (
                op_type in ("Mul", "Div") and view.out_dims() and len(view.out_dims()) > 1
            ):
                view.refuse("it computes with the batch size")
            return arithmetic(view)
        if data is None:
            view.refuse("no rule says how it treats the batch")
        return data(view)

    return apply


def install() -> None:
    """Let the operators that also compute shapes try that first."""
    for op_type in ("Cast", "Identity", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze"):
        RULES[op_type] = either(op_type)
    for op_type in ("Mul", "Div"):
        RULES[op_type] = either(op_type)
