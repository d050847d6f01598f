"""The table of operators: ONNX operator type -> the function that translates it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnpass.importer.node import ImportedNode

Handler = Callable[["ImportedNode"], Any]


@dataclass(frozen=True)
class Entry:
    """One row: a handler and the opsets of its domain that it understands (inclusive)."""

    handler: Handler
    since: int
    until: int | None

    def covers(self, opset: int) -> bool:
        """Whether the handler understands this opset."""
        return self.since <= opset and (self.until is None or opset <= self.until)


_TABLE: dict[tuple[str, str], list[Entry]] = {}


def register_op(
    op_type: str, *, domain: str = "", since: int = 1, until: int | None = None
) -> Callable[[Handler], Handler]:
    """Register the translation of an ONNX operator (a decorator).

    The function gets a :class:`bnpass.importer.node.ImportedNode` and returns the output value,
    or a tuple of them for an operator with several outputs. A later registration wins over an
    earlier one.

    Args:
        op_type: the operator, e.g. ``"Conv"``.
        domain: its domain; empty for ONNX's own.
        since: the first opset of that domain that the function understands.
        until: the last one; None for no end.

    Example::

        @bnpass.importer.register_op("Scale", domain="com.example")
        def scale(op):
            return op.call(torch.mul, op.tensor(0), op.attr("factor", 1.0))
    """

    def add(handler: Handler) -> Handler:
        _TABLE.setdefault((_plain(domain), op_type), []).insert(0, Entry(handler, since, until))
        return handler

    return add


def find(domain: str, op_type: str, opset: int) -> Handler | None:
    """The handler of an operator at an opset of its domain, or None."""
    for entry in _TABLE.get((_plain(domain), op_type), ()):
        if entry.covers(opset):
            return entry.handler
    return None


def is_ours(handler: Handler) -> bool:
    """Whether a handler is of the table itself and not a user's."""
    return handler.__module__.startswith("bnpass.importer.ops.")


def known_ops(domain: str = "") -> tuple[str, ...]:
    """The operator types of a domain that can be imported, sorted."""
    return tuple(sorted(op for where, op in _TABLE if where == _plain(domain)))


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
