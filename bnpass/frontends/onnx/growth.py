"""How large an ONNX model may become by copies of weights that others read too."""

from __future__ import annotations

import math
from collections.abc import Hashable

import onnx

from bnpass.frontends.onnx.read import Reading
from bnpass.onnx_model.messages import np_dtype
from bnpass.onnx_model.storage import external
from bnpass.passes import growth
from bnpass.passes.growth import Room
from bnpass.passes.sites import InsertPlan


def room_of(model: onnx.ModelProto, most: float) -> Room:
    """Of a model that has not grown yet; it may become ``most`` times as large."""
    return Room(sum(external.nbytes(t) or 0 for t in external.tensors(model)), most)


def without_growth(reading: Reading, plan: InsertPlan, most: float) -> InsertPlan:
    """See :func:`bnpass.passes.growth.without_growth`; of the main graph."""
    scope = reading.main
    held = {n.output[0] for n in scope.proto.node if n.op_type == "Constant" and n.output}
    held |= scope.initializers.keys()

    def stored(name: str) -> tuple[Hashable, int] | None:
        constant = scope.graph.constant(name) if name in held else None
        if constant is None:
            return None
        return name, math.prod(constant.shape) * np_dtype(constant.dtype).itemsize

    room = room_of(reading.model.proto, most)
    return growth.without_growth(plan, scope.graph, room, stored, scope.readers)
