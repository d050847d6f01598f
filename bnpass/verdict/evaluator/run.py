"""Evaluation of nodes and of whole graphs, nested bodies and local functions included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bnpass.errors import InputError
from bnpass.onnx_model.attributes import (
    OLDEST_OPSET,
    ONNX_DOMAINS,
    node_name,
    opset_of,
    opsets,
    value_of,
)
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.scopes import captured_by
from bnpass.verdict.evaluator import (  # noqa: F401 - they fill the table
    control,
    conv,
    elementwise,
    indexing,
    linear,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    structure,
)
from bnpass.verdict.evaluator.call import TABLE, Array, Function, Invocation, UnknownOperatorError
from bnpass.verdict.evaluator.linear import BLOCKWISE, LARGE, Squares

Lookup = Callable[[str], Array]


def wide(array: Any) -> Array:
    """A floating array in float64, any other as it is."""
    found: Array = np.asarray(array)
    if found.dtype.kind == "f" or "float" in found.dtype.name:
        return found.astype(np.float64, copy=False)
    return found


def _operand(array: Any, blocks: bool) -> Any:
    """In float64; large weights stay as they are where the operator widens them in blocks."""
    large = blocks and array.ndim == 2 and array.size > LARGE
    return array if large or isinstance(array, Squares) else wide(array)


def compute(
    node: onnx.NodeProto,
    lookup: Lookup,
    opset: int,
    functions: Mapping[tuple[str, str], onnx.FunctionProto] = {},
    table: Mapping[str, Function] | None = None,
) -> list[Array | None]:
    """Compute a node's outputs.

    Args:
        node: any node.
        lookup: the value of a name, those that nested bodies read included.
        opset: the version of ONNX's own operators.
        functions: the model's local functions by (domain, name).
        table: other functions of operators than the usual ones.

    Raises:
        UnknownOperatorError: the operator is not known.
    """
    function = functions.get((node.domain, node.op_type))
    blocks = node.op_type in BLOCKWISE
    inputs = [_operand(lookup(name), blocks) if name else None for name in node.input]
    if function is not None and table is None:
        return _call_function(function, node, inputs, functions)

    def body(graph: onnx.GraphProto, given: Sequence[Array]) -> list[Array]:
        return _run_body(graph, given, lookup, opset, functions)

    kind = node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}::{node.op_type}"
    made = (TABLE if table is None else table).get(kind)
    if made is None:
        raise UnknownOperatorError(f"the evaluator does not know {kind} ({node_name(node)!r})")
    wanted = [bool(name) for name in node.output]
    call = Invocation(kind, attributes_of(node), inputs, wanted, opset, body, node_name(node))
    try:
        with np.errstate(all="ignore"):
            return [None if out is None else wide(out) for out in made(call)]
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{kind} {node_name(node)!r} cannot be computed: {error}") from error


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values; tensors as arrays."""
    return {a.name: _value(a) for a in node.attribute}


def _value(attribute: onnx.AttributeProto) -> Any:
    found = value_of(attribute)
    return numpy_helper.to_array(found) if isinstance(found, onnx.TensorProto) else found


def _run_body(
    graph: onnx.GraphProto,
    given: Sequence[Array],
    outer: Lookup,
    opset: int,
    functions: Mapping[tuple[str, str], onnx.FunctionProto],
) -> list[Array]:
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    values.update({i.name: wide(a) for i, a in zip(graph.input, given, strict=False)})
    found = _Scope(values, outer)
    for node in graph.node:
        found.add(node, compute(node, found, opset, functions))
    return [wide(found(o.name)) for o in graph.output]


class _Scope:
    """The values of a body, and behind them those of the graph around it."""

    def __init__(self, values: dict[str, Array], outer: Lookup) -> None:
        self.values, self.outer = values, outer

    def __call__(self, name: str) -> Array:
        found = self.values.get(name)
        return self.outer(name) if found is None else found

    def add(self, node: onnx.NodeProto, outputs: Sequence[Array | None]) -> None:
        for name, array in zip(node.output, outputs, strict=False):
            if name and array is not None:
                self.values[name] = array


def _call_function(
    function: onnx.FunctionProto,
    node: onnx.NodeProto,
    inputs: Sequence[Array | None],
    functions: Mapping[tuple[str, str], onnx.FunctionProto],
) -> list[Array | None]:
    given = {a.name: a for a in (*function.attribute_proto, *node.attribute)}
    values = {n: a for n, a in zip(function.input, inputs, strict=False) if a is not None}
    scope = _Scope(values, _missing)
    opset = opsets(function.opset_import).get("", OLDEST_OPSET)
    for inner in function.node:
        scope.add(inner, compute(_bound(inner, given), scope, opset, functions))
    return [scope.values.get(name) for name in function.output]


def _missing(name: str) -> Array:
    raise InputError(f"value {name!r} is read before it is made")


def _bound(
    node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]
) -> onnx.NodeProto:
    """A node of a function, the attributes that refer to the function's own put in."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    bound = copied(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            bound.attribute.append(given[attribute.ref_attr_name])
            bound.attribute[-1].name = attribute.name
    return bound


class Evaluator:
    """A whole model; values are freed when nothing reads them any more.

    Args:
        model: with its data, unless ``constant`` finds the data of initializers.
        constant: an initializer's array by name.
    """

    def __init__(self, model: onnx.ModelProto, constant: Lookup | None = None) -> None:
        self.model, self.opset = model, opset_of(model)
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self._tensors = {t.name: t for t in model.graph.initializer}
        self._constant = constant or (lambda name: numpy_helper.to_array(self._tensors[name]))

    def run(
        self, feeds: Mapping[str, Array], outputs: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Compute values of the main graph (its outputs, where none are named).

        Raises:
            UnknownOperatorError: an operator is not known.
            InputError: an operator does not take its operands.
        """
        graph = self.model.graph
        wanted = [o.name for o in graph.output] if outputs is None else list(outputs)
        last = self._last_readers(wanted)
        values = {name: wide(array) for name, array in feeds.items()}

        def lookup(name: str) -> Array:
            found = values.get(name)
            if found is not None:
                return found
            if name not in self._tensors:
                raise InputError(f"value {name!r} is read before it is made")
            return self._constant(name)

        for index, node in enumerate(graph.node):
            made = compute(node, lookup, self.opset, self.functions)
            values.update(
                {n: a for n, a in zip(node.output, made, strict=False) if n and a is not None}
            )
            for name in last.get(index, ()):
                values.pop(name, None)
        return {name: wide(lookup(name)) for name in wanted}

    def _last_readers(self, wanted: Iterable[str]) -> dict[int, list[str]]:
        """node number -> values that nothing behind it reads."""
        last: dict[str, int] = {}
        for index, node in enumerate(self.model.graph.node):
            for name in (*node.input, *node.output, *captured_by(node)):
                last[name] = index
        for name in wanted:
            last.pop(name, None)
        ends: dict[int, list[str]] = {}
        for name, index in last.items():
            ends.setdefault(index, []).append(name)
        return ends
