"""Local functions expanded: a weight in a function's body is one weight, whoever calls it.

The inliner copies a body for each call, its Constant nodes too. So every constant of a body gets a
name of its own first, by which its copies are known to be the same, and by which
:func:`~bnpass.importer.writeback.write_back` finds the node again in the function.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from bnpass.onnx_model.attributes import is_onnx, value_of
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.scopes import graphs, nodes_within

_FLOATS = ("value_float", "value_floats")


def inline_functions(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, frozenset[str]]:
    """The model with its own functions expanded, and the names of the constants in their bodies.

    Args:
        proto: not changed; returned as it is where it has no functions.

    Returns:
        The expanded model, in which the tensor of a copied Constant node carries the name.
    """
    if not proto.functions:
        return proto, frozenset()
    import onnx.inliner

    copy = copied(proto)
    names = []
    for name, _, node in function_constants(copy):
        names.append(name)
        _name(node.attribute[0], name)
    inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(copy)
    return inlined, frozenset(names)


def function_constants(
    model: onnx.ModelProto,
) -> Iterator[tuple[str, onnx.FunctionProto, onnx.NodeProto]]:
    """(name in the whole model, function, node) of the Constant nodes in all functions."""
    taken = _names(model)
    for function in model.functions:
        head = ".".join(p for p in (function.domain, function.name, function.overload) if p)
        for node in nodes_within(function.node):
            if not is_onnx(node, "Constant"):
                continue
            attribute = node.attribute[0]
            if attribute.ref_attr_name or attribute.name not in ("value", *_FLOATS):
                continue
            name = f"{head}.{node.output[0]}"
            while name in taken:
                name += "_"
            taken.add(name)
            yield name, function, node


def _names(model: onnx.ModelProto) -> set[str]:
    names: set[str] = set()
    for graph in graphs(model.graph):
        names.update(t.name for t in graph.initializer)
        names.update(name for node in graph.node for name in node.output)
    return names


def _name(attribute: onnx.AttributeProto, name: str) -> None:
    """Put a name on a constant's tensor; a list of floats becomes a tensor for it."""
    if attribute.name in _FLOATS:
        value = value_of(attribute)
        tensor = onnx.helper.make_tensor(
            name,
            onnx.TensorProto.FLOAT,
            [len(value)] if attribute.name == "value_floats" else [],
            value if attribute.name == "value_floats" else [value],
        )
        attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
    else:
        attribute.t.name = name
