"""What a node says of itself: its attributes, its name, the version of its operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import onnx

ONNX_DOMAINS = ("", "ai.onnx")
"""Both names of ONNX's own operators."""

OLDEST_OPSET = 7
"""Of which bnpass knows the operators."""


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, or the default where it is absent."""
    for item in node.attribute:
        if item.name == name:
            return value_of(item)
    return default


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """All attributes by name, as :func:`value_of` reads them."""
    return {item.name: value_of(item) for item in node.attribute}


def value_of(item: onnx.AttributeProto) -> Any:
    """An attribute's value: numbers, text, lists of them; tensors and graphs as protos."""
    plain = _PLAIN.get(item.type)
    if plain is not None:
        return plain(item)
    if item.type == onnx.AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in item.strings]
    return onnx.helper.get_attribute_value(item)


def plain_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes that are numbers and strings; tensors and graphs are left out."""
    found = {}
    for item in node.attribute:
        plain = _PLAIN.get(item.type)
        if plain is not None:
            found[item.name] = plain(item)
    return found


_PLAIN: dict[int, Callable[[onnx.AttributeProto], Any]] = {
    onnx.AttributeProto.INT: lambda a: a.i,
    onnx.AttributeProto.INTS: lambda a: a.ints[:],
    onnx.AttributeProto.FLOAT: lambda a: a.f,
    onnx.AttributeProto.FLOATS: lambda a: a.floats[:],
    onnx.AttributeProto.STRING: lambda a: a.s.decode("utf-8", "replace"),
}


def set_attributes(node: onnx.NodeProto, **values: Any) -> None:
    """Give a node attributes, in place of those of the same names; None takes one away."""
    kept = [item for item in node.attribute if item.name not in values]
    made = [onnx.helper.make_attribute(n, v) for n, v in values.items() if v is not None]
    del node.attribute[:]
    node.attribute.extend([*kept, *made])


def is_onnx(node: onnx.NodeProto, *kinds: str) -> bool:
    """Whether a node is one of ONNX's own operators, of one of these types where any is given."""
    return node.domain in ONNX_DOMAINS and (not kinds or node.op_type in kinds)


def node_name(node: onnx.NodeProto) -> str:
    """The node's name, or its first output's where it has none."""
    return node.name or next((o for o in node.output if o), node.op_type)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses; 1 where none at all is stated.

    A model that states other domains alone has no such operators: any version would do.
    """
    return opsets(model.opset_import).get("", OLDEST_OPSET if model.opset_import else 1)


def opsets(stated: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """domain -> version, ONNX's own under the empty name."""
    return {"" if o.domain in ONNX_DOMAINS else o.domain: int(o.version) for o in stated}
