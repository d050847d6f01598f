"""What is wrong with a model that is no valid ONNX, by the name of the node or tensor at fault.

onnx's checker stops where it likes and often names nothing; a runtime says that a file cannot be
loaded. Here every message names its place. What steers the work (bytes of tensors, types of
attributes, groups, cycles, values made twice) is looked at when a model is read; the whole walk is
made only once something has gone wrong: of most folds it would take a third of the time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

import onnx

from bnpass import limits
from bnpass.errors import InputError
from bnpass.onnx_model.attributes import ONNX_DOMAINS, node_name, opset_of
from bnpass.onnx_model.scopes import bodies, graphs, nodes_within
from bnpass.onnx_model.storage import external

HINT = "onnx.checker.check_model(model, full_check=True) says more; export it again"

_CYCLE = "its nodes cannot be sorted topologically, they read each other in a cycle"

_LARGEST = 1 << 40
"""Elements of a value from which on its size is a mistake, or malice."""

# ONNX's operators with an attribute ``group``.
_GROUPED = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv"})

_TYPES = {number: name for name, number in onnx.AttributeProto.AttributeType.items()}

_ELEMENTS = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}

_FIELDS = {1: "float_data", 6: "int32_data", 7: "int64_data", 11: "double_data"}
"""Where float, int32, int64 and double tensors without raw data hold a number an element."""

Name = tuple[str, str]
"""Domain and name of a function."""


def first_fault(model: onnx.ModelProto) -> str | None:
    """One line on the first fault of a model, with the name of its place; None without one."""
    return next(_faults(model), None)


def _faults(model: onnx.ModelProto) -> Iterator[str]:
    yield from _text_faults(model)
    for tensor in external.tensors(model):
        yield from tensor_faults(tensor)
    opset = opset_of(model)
    yield from _graph_faults(model.graph, opset)
    for function in model.functions:
        for node in function.node:
            yield from _node_faults(node, opset)


def _text_faults(message: Any) -> Iterator[str]:
    """Text that is no UTF-8, anywhere in a message: protobuf gives it as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    yield f"the {field.name} {text[:60]!r} is not UTF-8"
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _text_faults(part)


def refuse(faults: Iterable[str]) -> None:
    """Refuse a model for the first of its faults.

    Raises:
        InputError: there is one.
    """
    for fault in faults:
        raise InputError(f"not a valid ONNX model: {fault}", HINT)


# --- tensors


def tensor_faults(tensor: onnx.TensorProto) -> Iterator[str]:
    """What is wrong with a tensor's type, shape and bytes."""
    where = f"tensor {tensor.name!r}"
    if tensor.data_type not in _ELEMENTS:
        yield f"{where} has the unknown element type {tensor.data_type}"
        return
    dims = tensor.dims[:]
    if dims and min(dims) < 0:
        yield f"{where} has the shape {dims[:8]}"
        return
    wanted = external.nbytes(tensor)
    if wanted is None or external.is_external(tensor):
        return
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
        if held != wanted:
            yield f"{where} of shape {dims[:8]} needs {wanted} bytes and has {held}"
        return
    field = _FIELDS.get(tensor.data_type)
    held = 0 if field is None else len(getattr(tensor, field))
    if field is not None and held != math.prod(dims):
        yield f"{where} of shape {dims[:8]} has {held or 'no'} numbers"
    elif field is None and wanted and not any(len(getattr(tensor, f)) for f in external.TYPED):
        yield f"{where} of shape {dims[:8]} has no numbers"


# --- nodes


def _graph_faults(graph: onnx.GraphProto, opset: int) -> Iterator[str]:
    made = Counter(name for node in graph.node for name in node.output if name)
    made.update(info.name for info in graph.input)
    for name, count in made.items():
        if count > 1:
            yield f"value {name!r} is made {count} times"
    for info in graph.input:
        yield from _size_faults(info)
    dims = {tensor.name: tensor.dims[:] for tensor in graph.initializer}
    for node in graph.node:
        yield from _node_faults(node, opset)
        yield from group_faults(node, dims.get)
        if node.op_type == "BatchNormalization":
            fault = norm_fault(node, {n: dims[n] for n in node.input[1:5] if n in dims})
            yield from [fault] if fault is not None else []
        for body in bodies(node):
            yield from _graph_faults(body, opset)
    names = cycle(graph.node)
    if names:
        yield f"{_CYCLE}: {', '.join(map(repr, names[:4]))}"


def _size_faults(info: onnx.ValueInfoProto) -> Iterator[str]:
    elements = 1
    for dim in info.type.tensor_type.shape.dim:
        elements *= max(1, dim.dim_value)
    if elements >= _LARGEST:
        yield f"input {info.name!r} is declared with {elements} elements"


def _node_faults(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    where = f"node {node_name(node)!r} ({node.op_type})"
    odd = [name for name in (node.name, node.op_type, node.domain, *node.input, *node.output)
           if type(name) is not str]
    if odd:
        yield f"the name {odd[0]!r} is not UTF-8"
        return
    if not node.op_type:
        yield f"node {node_name(node)!r} names no operator"
    if node.domain not in ONNX_DOMAINS:
        return
    schema = _schema(node.op_type, opset)
    if schema is None:
        return
    if not schema.min_input <= len(node.input) <= schema.max_input:
        yield f"{where} has {len(node.input)} inputs"
    if not schema.min_output <= len(node.output) <= schema.max_output:
        yield f"{where} has {len(node.output)} outputs"
    yield from attribute_faults(node, opset)
    there = {attribute.name for attribute in node.attribute}
    for name, known in schema.attributes.items():
        if known.required and name not in there:
            yield f"{where} lacks its attribute {name!r}"


def attribute_faults(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    """Attributes of an ONNX operator that are of another type than it has; impossible groups."""
    known = _attribute_types(node.op_type, opset) if node.domain in ONNX_DOMAINS else {}
    for attribute in node.attribute if known else ():
        name, wanted = attribute.name, known.get(attribute.name)
        if wanted is not None and attribute.type != wanted:
            given = _TYPES.get(attribute.type, str(attribute.type))
            yield (f"node {node_name(node)!r} ({node.op_type}) has an attribute {name!r} of type "
                   f"{given}, not {_TYPES[wanted]}")
        elif name == "group" and node.op_type in _GROUPED and attribute.i < 1:
            yield f"node {node_name(node)!r} ({node.op_type}) has group {attribute.i}"


def group_faults(
    node: onnx.NodeProto, dims: Callable[[str], Sequence[int] | None]
) -> Iterator[str]:
    """A convolution whose groups do not divide the first size of its weight.

    Args:
        node: any node.
        dims: the shape of a tensor by its name, None where it is not known.
    """
    if node.op_type not in {"Conv", "ConvTranspose"} or len(node.input) < 2:
        return
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    found = dims(node.input[1]) if group != 1 else None
    if found is not None and len(found) > 1 and group > 0 and found[0] % group:
        yield (f"node {node_name(node)!r} ({node.op_type}) has group {group} and a weight of "
               f"shape {list(found)[:6]}")


def norm_fault(
    node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]], channels: int | None = None
) -> str | None:
    """What is wrong with the shapes of a BatchNormalization's parameters; None where they fit.

    ONNX wants four vectors of as many numbers as the data has channels. onnx's checker looks at
    none of this, and runtimes only when they run it.

    Args:
        node: the BatchNormalization.
        shapes: of its parameters, by name, as far as they are known.
        channels: of its data; None while that is not known.
    """
    if any(a.name == "spatial" and not a.i for a in node.attribute):
        return None  # until opset 9: a parameter for every place of an image
    found = {tuple(shape) for shape in shapes.values()}
    shown = ", ".join(f"{name!r} {list(shape)[:6]}" for name, shape in shapes.items())
    where = f"node {node_name(node)!r} (BatchNormalization)"
    if len(found) > 1:
        return f"Dimension mismatch in {where}: its parameters are {shown}"
    if any(len(shape) != 1 for shape in found):
        return f"Dimension mismatch in {where}: its parameters are no vectors: {shown}"
    if found and channels is not None and found != {(channels,)}:
        return f"Dimension mismatch in {where}: {channels} channels, its parameters are {shown}"
    return None


@lru_cache(maxsize=512)
def _schema(kind: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(kind, opset, "")
    except onnx.defs.SchemaError:
        return None


@lru_cache(maxsize=512)
def _attribute_types(kind: str, opset: int) -> dict[str, int]:
    """The numbers of the types of an operator's attributes, by their names."""
    schema = _schema(kind, opset)
    return {} if schema is None else {
        name: int(known.type.value)  # type: ignore[attr-defined]
        for name, known in schema.attributes.items()}


def cycle(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """The names of nodes that wait for each other; empty where there is an order to run them."""
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    reads = {place: [makers[name] for name in node.input if name in makers]
             for place, node in enumerate(nodes)}
    try:
        TopologicalSorter(reads).prepare()
    except CycleError as error:
        return [node_name(nodes[place]) for place in error.args[1][1:]]
    return []


def not_text(name: str | bytes) -> InputError:
    """The error of a name that is no UTF-8: protobuf gives it as bytes."""
    shown = name.decode(errors="backslashreplace") if isinstance(name, bytes) else name
    return InputError(f"not a valid ONNX model: the name {shown!r} is not UTF-8", HINT)


def check_graph(graph: onnx.GraphProto, opset: int) -> None:
    """Refuse a graph whose parts would lead the work astray; the bodies in it are not looked at.

    Raises:
        InputError: a value is made twice, nodes read each other in a cycle, a tensor's bytes do not
            fit its shape, an attribute has another type than its operator's, groups do not divide,
            or a name is no UTF-8.
    """
    for info in (*graph.input, *graph.output):
        if type(info.name) is not str:
            raise not_text(info.name)
    for tensor in graph.initializer:
        refuse(tensor_faults(tensor))
    dims = {tensor.name: tensor.dims for tensor in graph.initializer}
    made = {info.name for info in graph.input}
    known = {"", *made, *dims}
    early = False
    for node in graph.node:
        early = early or not known.issuperset(node.input)
        for name in node.output:
            if type(name) is not str:
                raise not_text(name)
            if name in made:
                refuse([f"value {name!r} is made twice, again by node {node_name(node)!r}"])
            if name:
                made.add(name)
                known.add(name)
        refuse(attribute_faults(node, opset))
        refuse(group_faults(node, dims.get))
    names = cycle(graph.node) if early else []
    if names:
        refuse([f"{_CYCLE}: {', '.join(map(repr, names[:4]))}"])


def check_model(model: onnx.ModelProto) -> None:
    """Refuse a model for a fault of any of its graphs (:func:`check_graph`) or its functions.

    Raises:
        InputError: there is one.
        BudgetError: its functions are too much work written out.
    """
    check_functions(model)
    opset = opset_of(model)
    for graph in graphs(model.graph):
        check_graph(graph, opset)


# --- functions


def check_functions(model: onnx.ModelProto) -> None:
    """Refuse functions that call themselves, and those that are too much work written out.

    Whoever inlines functions, infers shapes through them or loads them into a runtime writes them
    out, level by level: thirty that call each other twice are a thousand million nodes.

    Raises:
        InputError: functions call each other in a circle.
        BudgetError: more nodes, or names, than the limits of ``nodes`` and ``names``.
    """
    if not model.functions:
        return
    sizes = _sizes({(f.domain, f.name): f for f in model.functions})
    total = names = 0
    for node in nodes_within(model.graph.node):
        size, length = sizes.get((node.domain, node.op_type), (0, 0))
        total, names = total + 1 + size, names + length
        if size:
            where = f"{node_name(node)!r}, a call of {node.op_type!r},"
            limits.check("nodes", total, where)
            limits.check("names", names, where)


def _sizes(functions: dict[Name, onnx.FunctionProto]) -> dict[Name, tuple[int, int]]:
    """Nodes, and bytes of their names, of each function when all that it calls is written out.

    Raises:
        InputError: one calls itself.
    """
    calls, own = {}, {}
    for name, function in functions.items():
        nodes = list(nodes_within(function.node))
        calls[name] = [(node.domain, node.op_type) for node in nodes]
        own[name] = sum(len(node.name) + sum(map(len, node.output)) for node in nodes)
    sizes: dict[Name, tuple[int, int]] = {}
    try:
        order = TopologicalSorter(
            {name: [callee for callee in inner if callee in functions]
             for name, inner in calls.items()}
        ).static_order()
        for name in order:
            inner = [sizes.get(callee, (0, 0)) for callee in calls[name]]
            sizes[name] = (len(inner) + sum(count for count, _ in inner),
                           own[name] + sum(length for _, length in inner))
    except CycleError as error:
        names = ", ".join(repr(name) for _, name in error.args[1][:5])
        raise InputError(f"not a valid ONNX model: functions call themselves: {names}", HINT
                         ) from None
    return sizes
