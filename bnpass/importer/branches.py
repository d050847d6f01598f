"""Which branch an If takes, where that is the same in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from bnpass.importer.node import NotExactError
from bnpass.importer.values import Const
from bnpass.ir.arithmetic import whole
from bnpass.onnx_model.scopes import graphs

if TYPE_CHECKING:
    from bnpass.importer.convert import Importer


def condition(importer: Importer, node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """The value of the condition of an If node.

    Raises:
        NotExactError: it depends on the data or on a free dimension.
    """
    name = node.input[0]
    value = importer.value(name)
    if isinstance(value, Const):
        return bool(value.tensor.reshape(()).item())
    known = importer.known(name)
    taken = None if known is None or name in known.declared else whole(known.known(name))
    if taken is None or len(taken) != 1:
        raise NotExactError(_why(name, model))
    return bool(taken[0])


def _why(name: str, model: onnx.ModelProto) -> str:
    """Names the inputs that a condition is computed from: they can be given."""
    made_by = makers(model)
    constants = {t.name for t in model.graph.initializer}
    inputs = [i.name for i in model.graph.input if i.name not in constants]
    open_, seen = [name], {name}
    while open_:
        maker = made_by.get(open_.pop())
        more = [] if maker is None else [i for i in maker.input if i and i not in seen]
        seen.update(more)
        open_ += more
    deciding = [i for i in inputs if i in seen]
    text = f"the condition {name!r} is not the same in every run"
    if not deciding:
        return text
    return (
        f"{text}; it depends on {', '.join(deciding)}: give what decides it, "
        f"to_torch(..., inputs={{{deciding[-1]!r}: value}})"
    )


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes a value, by the value's name; nodes of all bodies among them."""
    return {o: n for graph in graphs(model.graph) for n in graph.node for o in n.output if o}
