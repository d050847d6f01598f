"""What the importer asks of an ONNX graph as a whole."""

from __future__ import annotations

import onnx

_STEERED = {"Resize": (1, 2), "Upsample": (1,)}


def steering(graph: onnx.GraphProto) -> set[str]:
    """The values that a Resize gets its scales from: however computed, they are no weights."""
    makers = {name: node for node in graph.node for name in node.output}
    open_ = [
        name for n in graph.node for i in _STEERED.get(n.op_type, ()) for name in n.input[i : i + 1]
    ]
    found: set[str] = set()
    while open_:
        name = open_.pop()
        maker = makers.get(name)
        if name in found or (maker is not None and maker.op_type in ("Shape", "Size")):
            continue
        found.add(name)
        open_.extend(maker.input if maker is not None else ())
    return found
