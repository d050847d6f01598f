"""Which branch an If takes, where that is the same in every run."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from bnpass.importer.node import NotExactError
from bnpass.importer.values import Const
from bnpass.onnx_model.attributes import attribute, attributes
from bnpass.onnx_model.scopes import graphs

if TYPE_CHECKING:
    from bnpass.importer.convert import Importer

Dims = list[int | None]
Known = np.ndarray
"""An object array of ints and bools in which None stands for what differs between runs."""


def condition(importer: Importer, node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """The value of the condition of an If node.

    Raises:
        NotExactError: it depends on the data or on a free dimension.
    """
    name = node.input[0]
    value = importer.value(name)
    if isinstance(value, Const):
        return bool(value.tensor.reshape(()).item())
    known = _Static(importer, model).value(name)
    if known is None or known.size != 1 or known.reshape(-1)[0] is None:
        raise NotExactError(_why(name, model))
    return bool(known.reshape(-1)[0])


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


class _Static:
    """Evaluates shape arithmetic on the dimensions that the model itself states."""

    def __init__(self, importer: Importer, model: onnx.ModelProto) -> None:
        self._importer = importer
        self._makers = makers(model)
        self._shapes = importer.static_shapes(model)

    def value(self, name: str) -> Known | None:
        """The value with None for unknown entries; None if nothing is known."""
        const = self._importer.value(name)
        if isinstance(const, Const):
            return np.array(const.tensor.tolist(), dtype=object)
        node = self._makers.get(name)
        if node is None:
            return None
        if node.op_type in ("Shape", "Size"):
            return self._of_shape(node)
        rule = _RULES.get(node.op_type)
        if rule is None:
            return None
        inputs = [self.value(i) if i else None for i in node.input]
        if any(v is None for i, v in zip(node.input, inputs, strict=True) if i):
            return None
        result: Known = np.array(rule(inputs, attributes(node)), dtype=object)
        return result

    def _of_shape(self, node: onnx.NodeProto) -> Known | None:
        dims = self._shapes.get(node.input[0])
        if dims is None:
            return None
        if node.op_type == "Size":
            return np.array(None if None in dims else int(np.prod([d or 0 for d in dims])), object)
        start, end = attribute(node, "start", 0), attribute(node, "end")
        return np.array(dims[start:end], dtype=object)


def _slice(inputs: list[Any], _: dict[str, Any]) -> Known:
    starts, ends, axes, steps = (*inputs[1:], None, None, None)[:4]
    assert axes is None or list(axes) == [0]
    step = 1 if steps is None else steps[0]
    part: Known = inputs[0][starts[0] : ends[0] : step]
    return part


def _gather(inputs: list[Any], attrs: dict[str, Any]) -> Known:
    return np.take(inputs[0], np.asarray(inputs[1], np.int64), axis=attrs.get("axis", 0))


def _concat(inputs: list[Any], attrs: dict[str, Any]) -> Known:
    return np.concatenate([np.atleast_1d(v) for v in inputs], axis=attrs["axis"])


def _same(inputs: list[Any], _: dict[str, Any]) -> Known:
    value: Known = inputs[0]
    return value


def _squeeze(inputs: list[Any], _: dict[str, Any]) -> Known:
    value: Known = inputs[0]
    return value.reshape(()) if value.size == 1 else value


def _unsqueeze(inputs: list[Any], _: dict[str, Any]) -> Known:
    value: Known = inputs[0]
    return value.reshape(1) if value.ndim == 0 else value


def _lift(function: Callable[..., Any], arity: int) -> Any:
    """An elementwise rule: unknown where an operand is."""

    def apply(*values: Any) -> Any:
        return None if any(v is None for v in values) else function(*values)

    vectorised = np.frompyfunc(apply, arity, 1)
    return lambda inputs, _: vectorised(*inputs)


_RULES: dict[str, Any] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Identity": _same,
    "Cast": _same,
    "Equal": _lift(operator.eq, 2),
    "Greater": _lift(operator.gt, 2),
    "Less": _lift(operator.lt, 2),
    "GreaterOrEqual": _lift(operator.ge, 2),
    "LessOrEqual": _lift(operator.le, 2),
    "Add": _lift(operator.add, 2),
    "Sub": _lift(operator.sub, 2),
    "Mul": _lift(operator.mul, 2),
    "Not": _lift(operator.not_, 1),
    "And": _lift(operator.and_, 2),
    "Or": _lift(operator.or_, 2),
}
