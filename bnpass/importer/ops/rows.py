"""Weights of recurrent layers that the file puts together from parameters of their own.

torch's exporters write the parameters of its modules as they are, and the slices that put their
gates in ONNX's order behind them. torch's order of that is the parameter itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import fx

from bnpass.importer.functions import shape
from bnpass.importer.gates import Order

Range = tuple[fx.Node, int, int]
"""Rows of a parameter: its get_attr node, the first, and the one behind the last."""

Rows = list[Range]
T = TypeVar("T")


def parameters_in_order(node: fx.Node, order: Order, each: int) -> tuple[fx.Node, ...] | None:
    """The parameters whose rows ``node``, put in ``order``, consists of; None if it is not so.

    Args:
        node: (directions, rows, ...), where the rows are ``len(order)`` blocks.
        order: of the blocks.
        each: how many parameters a direction has.
    """
    found: list[fx.Node] = []
    for rows in _stacked(node) or ():
        size, rest = divmod(sum(stop - start for _, start, stop in rows), len(order))
        if rest:
            return None
        sorted_ = [part for b in order for part in _cut(rows, b * size, (b + 1) * size)]
        merged = list(_merged(sorted_))
        whole = all((start, stop) == (0, _height(n)) for n, start, stop in merged)
        if len(merged) != each or not whole:
            return None
        found += [n for n, _, _ in merged]
    return tuple(found) or None


def _stacked(node: fx.Node) -> list[Rows] | None:
    """The rows of each entry of axis 0."""
    if node.target is torch.unsqueeze and node.args[1] == 0:
        rows = _rows(node.args[0])
        return None if rows is None else [rows]
    return _joined(node, _stacked)


def _rows(node: object) -> Rows | None:
    """What the rows of a value are, where they are rows of parameters."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        return [(node, 0, _height(node))] if node.meta["constant"].shape else None
    if node.target is shape.slice_axes:
        x, starts, ends, axes, steps = cast("tuple[Any, ...]", node.args)
        rows = _rows(x)
        literal = all(isinstance(v, tuple) and len(v) == 1 and isinstance(v[0], int)
                      for v in (starts, ends))  # fmt: skip
        if rows is None or not literal or axes not in (None, (0,)) or steps not in (None, (1,)):
            return None
        first, last, _ = slice(starts[0], ends[0]).indices(sum(b - a for _, a, b in rows))
        return list(_cut(rows, first, last))
    return _joined(node, _rows)


def _joined(node: fx.Node, part: Callable[[fx.Node], list[T] | None]) -> list[T] | None:
    if node.target is not torch.cat or node.kwargs.get("dim") != 0:
        return None
    parts = [part(n) for n in cast("Iterable[fx.Node]", node.args[0])]
    return [row for rows in parts for row in rows or ()] if all(parts) else None


def _cut(rows: Sequence[Range], first: int, last: int) -> Iterator[Range]:
    """The rows from ``first`` up to ``last``."""
    position = 0
    for node, start, stop in rows:
        low, high = max(first, position), min(last, position + stop - start)
        if low < high:
            yield node, start + low - position, start + high - position
        position += stop - start


def _merged(rows: Sequence[Range]) -> Iterator[Range]:
    """Neighbours that go on where the one before ends become one."""
    held: Range | None = None
    for node, start, stop in rows:
        if held is not None and held[0] is node and held[2] == start:
            held = (node, held[1], stop)
            continue
        if held is not None:
            yield held
        held = (node, start, stop)
    if held is not None:
        yield held


def _height(node: fx.Node) -> int:
    return int(node.meta["constant"].shape[0])
