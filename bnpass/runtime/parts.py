"""Large graphs in parts, one behind the other: onnxruntime's time to open one grows as its square.

Measured on a chain of 24,000 nodes: 10 s to open it whole, 0.7 s in 96 parts with a run, where no
thread spins while it waits. Large weights are opened and closed part by part, so that memory stays
near the largest part. What crosses from part to part has the type that onnxruntime gives it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import onnx

from bnpass.onnx_model.scopes import captured_by
from bnpass.onnx_model.storage import external
from bnpass.runtime.child import NORMAL, Limits, shared

if TYPE_CHECKING:
    from bnpass.runtime.engines import Array, Engine, Loaded, OrtEngine
    from bnpass.runtime.inputs import Feeds

NODES = 250
"""Nodes of one part."""

BYTES = 1 << 28
"""Weights of one part, where a model has more."""

WORTH = 1500
"""Nodes from which on it is worth it."""

_HELD = 1 << 30  # bytes of weights up to which all parts stay open


def worth_it(model: onnx.ModelProto) -> bool:
    """Whether a model is large enough to be opened in parts."""
    return len(model.graph.node) > WORTH or weight_bytes(model) > 2 * BYTES


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers."""
    return sum(external.nbytes(t) or 0 for t in model.graph.initializer)


def split(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    """The parts of a model, in order.

    Each is a model of its own; its outputs are what later parts, or the caller, read. Inputs that
    come from another part have no type yet.
    """
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    groups = list(_groups(graph, tensors))
    reads = [_reads(group) for group in groups]
    last = {name: index for index, names in enumerate(reads) for name in names}
    last.update((o.name, len(groups)) for o in graph.output)
    given = {i.name: i for i in graph.input}
    parts = []
    for index, group in enumerate(groups):
        made = {name for node in group for name in node.output if name}
        part = onnx.ModelProto(ir_version=model.ir_version)
        part.opset_import.extend(model.opset_import)
        part.functions.extend(model.functions)
        part.graph.name = f"part {index}"
        part.graph.node.extend(group)
        held = sorted(reads[index] & tensors.keys())
        part.graph.initializer.extend(tensors[n] for n in held)
        for name in sorted(reads[index] - made - tensors.keys()):
            part.graph.input.append(given.get(name) or onnx.ValueInfoProto(name=name))
        if model.ir_version < 4:  # where every initializer is an input as well
            part.graph.input.extend(given[n] for n in held if n in given)
        out = sorted(n for n in made if last.get(n, -1) > index)
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


class PartsEngine:
    """onnxruntime, part by part."""

    kind = "onnxruntime"

    def __init__(
        self, model: Loaded, parts: list[onnx.ModelProto], whole: Callable[[], OrtEngine],
        limits: Limits = NORMAL, **options: Any,
    ) -> None:
        """Prepare the parts; none is opened yet.

        Args:
            model: the model.
            parts: of it.
            whole: opens it in one session, where the parts do not do.
            limits: of each step.
            **options: of :func:`bnpass.runtime.session.session`.
        """
        self.parts, self.names = parts, [o.name for o in model.proto.graph.output]
        self._whole = whole
        self._instead: OrtEngine | None = None
        self._open: dict[int, Any] = {}
        self._kinds: dict[str, int] = {}
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
            session = self._session(index)
            if session is None:
                return self._unparted().run(feeds)
            into = {n: values[n] for n, _ in session.inputs}
            values.update(zip(names, session.run(names, into), strict=True))
            if not self._hold:
                session.close()
                del self._open[index]
            for name in [n for n in values if self._last.get(n, -1) <= index]:
                del values[name]
        return {name: values[name] for name in self.names}

    def _session(self, index: int) -> Any:
        """The session of a part; None where it reads what no tensor is."""
        if index not in self._open:
            part = self.parts[index]
            for port in part.graph.input:
                if not port.HasField("type"):
                    kind = self._kinds.get(port.name, 0)
                    if not kind:
                        return None
                    port.type.tensor_type.elem_type = kind  # its shape is left to the run
            session = self._open[index] = shared().session(part, **self._options)
            self._kinds.update((name, _element(kind)) for name, kind in session.outputs)
        return self._open[index]

    def _unparted(self) -> Engine:
        """The whole model in one session: a sequence or an optional goes from part to part."""
        self.close()
        if self._instead is None:
            self._instead = self._whole()
        return self._instead

    def close(self) -> None:
        """Free the sessions' memory."""
        for session in self._open.values():
            session.close()
        self._open.clear()
        if self._instead is not None:
            self._instead.session.close()
            self._instead = None


def _element(kind: str) -> int:
    """ONNX's number of an element type from onnxruntime's ``tensor(float)``; 0 for no tensor."""
    found = re.fullmatch(r"tensor\((\w+)\)", kind)
    return 0 if found is None else int(onnx.TensorProto.DataType.Value(found[1].upper()))
