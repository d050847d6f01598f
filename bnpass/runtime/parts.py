"""Large graphs in parts, one behind the other: onnxruntime's time to open one grows as its square.

Measured on a chain of 24,000 nodes: 10 s to open it whole, 1.6 s in 32 parts with a run of both.
Large weights are opened and closed part by part, so that memory stays near the largest part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import onnx

from bnpass.onnx_model import shapes
from bnpass.onnx_model.scopes import captured_by
from bnpass.onnx_model.storage import external
from bnpass.runtime.child import NORMAL, Limits, shared

if TYPE_CHECKING:
    from bnpass.runtime.engines import Array, Loaded
    from bnpass.runtime.inputs import Feeds

NODES = 750
"""Nodes of one part."""

BYTES = 1 << 28
"""Weights of one part, where a model has more."""

_HELD = 1 << 30  # bytes of weights up to which all parts stay open


def worth_it(model: onnx.ModelProto) -> bool:
    """Whether a model is large enough to be opened in parts."""
    return len(model.graph.node) > 2 * NODES or weight_bytes(model) > 2 * BYTES


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers."""
    return sum(external.nbytes(t) or 0 for t in model.graph.initializer)


def split(model: onnx.ModelProto) -> list[onnx.ModelProto] | None:
    """The parts of a model, in order; None where a value between two has no known type.

    Each is a model of its own; its outputs are what later parts, or the caller, read.
    """
    graph = model.graph
    types = shapes.LazyTypes(model).at(())().types
    tensors = {t.name: t for t in graph.initializer}
    groups = list(_groups(graph, tensors))
    reads = [_reads(group) for group in groups]
    made = [{name for node in group for name in node.output if name} for group in groups]
    given = {i.name: i for i in graph.input}
    wanted = {o.name for o in graph.output}
    parts = []
    for index, group in enumerate(groups):
        later = set().union(wanted, *reads[index + 1 :])
        into = [n for n in sorted(reads[index] - made[index]) if n not in tensors]
        out = sorted(made[index] & later)
        if any(n not in given and not _typed(types.get(n)) for n in into):
            return None
        part = onnx.ModelProto(ir_version=model.ir_version)
        part.opset_import.extend(model.opset_import)
        part.functions.extend(model.functions)
        part.graph.name = f"part {index}"
        part.graph.node.extend(group)
        part.graph.initializer.extend(tensors[n] for n in sorted(reads[index]) if n in tensors)
        for name in into:
            part.graph.input.append(given[name] if name in given else _info(name, types[name]))
        if model.ir_version < 4:  # where every initializer is an input as well
            part.graph.input.extend(given[n] for n in sorted(reads[index] & tensors.keys())
                                    if n in given)  # fmt: skip
        part.graph.output.extend(onnx.ValueInfoProto(name=n) for n in out)
        parts.append(part)
    return parts


def _groups(
    graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto]
) -> Iterator[list[onnx.NodeProto]]:
    group: list[onnx.NodeProto] = []
    size = 0
    for node in graph.node:
        own = sum(external.nbytes(tensors[n]) or 0 for n in node.input if n in tensors)
        if group and (len(group) >= NODES or size + own > BYTES):
            yield group
            group, size = [], 0
        group.append(node)
        size += own
    if group:
        yield group


def _reads(group: Sequence[onnx.NodeProto]) -> set[str]:
    return {name for node in group for name in (*node.input, *captured_by(node)) if name}


def _typed(kind: Any) -> bool:
    return kind is not None and bool(kind.elem_type)


def _info(name: str, kind: Any) -> onnx.ValueInfoProto:
    """A value's name and element type; its shape is left to the run."""
    info = onnx.ValueInfoProto(name=name)
    info.type.tensor_type.elem_type = kind.elem_type
    return info


class PartsEngine:
    """onnxruntime, part by part."""

    kind = "onnxruntime"

    def __init__(
        self, model: Loaded, parts: list[onnx.ModelProto], limits: Limits = NORMAL, **options: Any
    ) -> None:
        """``options`` are those of :func:`bnpass.runtime.session.session`."""
        self.parts, self.names = parts, [o.name for o in model.proto.graph.output]
        self._open: dict[int, Any] = {}
        self._hold = weight_bytes(model.proto) <= _HELD
        self._options = {"limits": limits, **options}
        if model.path is not None:
            self._options["folder"] = model.path.parent.resolve()
            self._options["name"] = os.fspath(model.path)
        self._last = self._last_readers()

    def _last_readers(self) -> dict[str, int]:
        last = {i.name: n for n, part in enumerate(self.parts) for i in part.graph.input}
        return {**last, **dict.fromkeys(self.names, len(self.parts))}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See :class:`bnpass.runtime.engines.Engine`."""
        values = dict(feeds)
        for index, part in enumerate(self.parts):
            names = [o.name for o in part.graph.output]
            if not names:
                continue
            session = self._open.get(index) or shared().session(part, **self._options)
            into = {n: values[n] for n, _ in session.inputs}
            values.update(zip(names, session.run(names, into), strict=True))
            if self._hold:
                self._open[index] = session
            else:
                session.close()
            for name in [n for n in values if self._last.get(n, -1) <= index]:
                del values[name]
        return {name: values[name] for name in self.names}

    def close(self) -> None:
        """Free the sessions' memory."""
        for session in self._open.values():
            session.close()
        self._open.clear()
