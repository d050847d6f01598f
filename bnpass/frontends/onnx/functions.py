"""Local functions: those that keep a BatchNormalization from folding are inlined.

A function is shared by its calls, whose weights differ: inlined, each call gets its own nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import onnx
import onnx.inliner

from bnpass.frontends.onnx.read import Reading
from bnpass.ir.graph import Graph, Op
from bnpass.ir.operators import RULES, operator
from bnpass.onnx_model.attributes import ONNX_DOMAINS, opsets
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.scopes import nodes_within

Name = tuple[str, str]
"""Domain and name of a function."""


def inline_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every local function inlined that has a BatchNormalization somewhere inside.

    The model itself comes back where there is nothing to inline.
    """
    norms = {
        (f.domain, f.name)
        for f in model.functions
        if any(node.op_type == "BatchNormalization" for node in nodes_within(f.node))
    }
    return inline(model, _callers(model, norms))


def inline(model: onnx.ModelProto, wanted: set[Name]) -> onnx.ModelProto:
    """A copy with the functions inlined; the model itself where that is not possible.

    That is where a function uses other versions of its operators than the model does.
    """
    if not wanted:
        return model
    copy = copied(model)
    for function in copy.functions:
        _raise_opset(function, model)
    try:
        inlined: onnx.ModelProto = onnx.inliner.inline_selected_functions(
            copy, sorted(wanted), exclude=False
        )
    except RuntimeError:
        return model
    return inlined


def in_the_way(reading: Reading, stays: Iterable[tuple[Graph, str]]) -> set[Name]:
    """The functions called where operators of a graph (by name) would fold, and what they call."""
    local = {f"{f.domain}::{f.name}": (f.domain, f.name) for f in reading.model.proto.functions}
    found = {
        local[call.kind]
        for graph, name in stays
        if name in graph.ops
        for call in _calls_around(graph, graph.ops[name], local)
    }
    return _called(reading.model.proto, found)


def _calls_around(graph: Graph, start: Op, local: dict[str, Name]) -> Iterator[Op]:
    """Calls that a map meets on its way, and those that make weights of the layers there."""
    stack, seen = [start], {start.name}
    while stack:
        op = stack.pop()
        if op.kind in local:
            yield op
            continue
        if op.kind not in RULES:
            continue
        makers = [graph.producer(name) for name in op.inputs]
        around = [one for one in makers if one is not None]
        if operator(op.kind).multiplies:
            around = [one for one in around if one.kind in local]
        else:
            around += [use.op for name in op.outputs for use in graph.uses(name)]
        for one in around:
            if one.name not in seen:
                seen.add(one.name)
                stack.append(one)


def _callers(model: onnx.ModelProto, found: set[Name]) -> set[Name]:
    """Functions, and all that call them."""
    calls = _calls(model)
    while more := {name for name, inner in calls.items() if inner & found} - found:
        found = found | more
    return found


def _called(model: onnx.ModelProto, found: set[Name]) -> set[Name]:
    """Functions, and all that they call."""
    calls = _calls(model)
    while more := {name for one in found for name in calls[one]} - found:
        found = found | more
    return found


def _calls(model: onnx.ModelProto) -> dict[Name, set[Name]]:
    """The functions that each function calls."""
    names = {(f.domain, f.name) for f in model.functions}
    return {
        (f.domain, f.name): names & {(n.domain, n.op_type) for n in nodes_within(f.node)}
        for f in model.functions
    }


def _raise_opset(function: onnx.FunctionProto, model: onnx.ModelProto) -> None:
    """Let a function use the model's opset where its operators are the same ones there."""
    ours = opsets(model.opset_import)
    for opset in function.opset_import:
        domain = "" if opset.domain in ONNX_DOMAINS else opset.domain
        version = ours.get(domain, opset.version)
        kinds = {n.op_type for n in nodes_within(function.node) if n.domain == opset.domain}
        if all(_since(k, opset.version, opset.domain) == _since(k, version, opset.domain)
               for k in kinds):  # fmt: skip
            opset.version = version


@lru_cache(maxsize=256)
def _since(kind: str, version: int, domain: str) -> int | None:
    """The opset in which an operator got the meaning that it has in a version."""
    try:
        return int(onnx.defs.get_schema(kind, version, domain).since_version)
    except onnx.defs.SchemaError:
        return None
