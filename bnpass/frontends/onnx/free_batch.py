"""A fixed batch size made symbolic in an ONNX model, where it provably is the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from bnpass.frontends.onnx.batch_check import check_batch, without_constants
from bnpass.frontends.onnx.read import Reading, read
from bnpass.frontends.onnx.repeat import repeat_constants
from bnpass.ir.graph import Dim, Graph, Op
from bnpass.onnx_model.messages import add_initializer, copied
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import graphs, has_bodies
from bnpass.onnx_model.shapes import stated
from bnpass.passes.free_batch import BatchPlan, common_size, plan_free_batch


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model whose fixed batch (axis 0 of its inputs) is symbolic.

    Args:
        model: with its data loaded or not; not changed.

    Returns:
        The copy: inputs and outputs say ``N`` (or the symbol that another input has already),
        Reshape and similar constants are freed, stale value infos are updated or dropped. A model
        that is symbolic already comes back as an equal copy.

    Raises:
        InputError: axis 0 is not provably the batch; names the node that stands in the way.
    """
    made = _planned(model, None)
    result = OnnxModel(copied(model))
    if made is not None:
        _apply(result, made.plan)
        check_batch(made.model, result, made.plan, made.size)
    return result.proto


def plan_batch(model: onnx.ModelProto, folder: Path | None = None) -> BatchPlan:
    """What :func:`free_batch` would change; reads shapes and small constants only.

    Args:
        model: not changed.
        folder: of its data files, where it has some.

    Raises:
        InputError: as :func:`free_batch`.
    """
    made = _planned(model, folder)
    if made is None:
        return BatchPlan()
    light = without_constants(made.model.proto, folder)
    _apply(light, made.plan)
    check_batch(made.model, light, made.plan, made.size, light=True)
    return made.plan


@dataclass(frozen=True)
class _FixedPlan:
    """A plan with the model that it was made for, whose batch size is fixed."""

    model: OnnxModel
    plan: BatchPlan
    size: int


def _planned(model: onnx.ModelProto, folder: Path | None) -> _FixedPlan | None:
    """The plan; None where nothing is to be done."""
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    batched = {i.name: dims for i in inputs if (dims := stated(i))}
    size = common_size(batched)
    if size is None:
        return None
    symbols = [d[0] for d in batched.values() if isinstance(d[0], str)]
    given = _with_size(model, batched, size) if symbols else model
    fixed = OnnxModel(given, folder, trust=False)
    reading = read(fixed, settle=False)
    symbol = symbols[0] if symbols else _fresh_symbol(model)
    plan = plan_free_batch(reading.main.graph, batched, size, symbol, _bodies(reading))
    return _FixedPlan(fixed, plan, size)


def _bodies(reading: Reading) -> dict[Op, dict[str, Graph]]:
    """The views of the bodies, by operator and attribute."""
    found: dict[Op, dict[str, Graph]] = {}
    for scope in reading.scopes:
        for op in scope.graph.ops.values():
            if has_bodies(scope.nodes[op.name]):
                found[op] = {}
    for scope in reading.scopes[1:]:
        assert scope.outer is not None
        first, attribute, _ = scope.place[-1]
        holder = scope.outer.graph.producer(first)
        if holder is not None:
            found[holder][attribute] = scope.graph
    return found


def _fresh_symbol(model: onnx.ModelProto) -> str:
    graph = model.graph
    taken = {
        d.dim_param
        for v in (*graph.input, *graph.output, *graph.value_info)
        for d in v.type.tensor_type.shape.dim
    }
    return next(n for n in ("N", "batch", "batch_size", "bnpass_N") if n not in taken)


def _with_size(
    model: onnx.ModelProto, batched: Mapping[str, tuple[Dim, ...]], size: int
) -> onnx.ModelProto:
    """The model with ``size`` where an input is symbolic already, for shape inference only."""
    result = copied(model)
    for value in result.graph.input:
        if value.name in batched:
            value.type.tensor_type.shape.dim[0].dim_value = size
    return result


# -- applying --------------------------------------------------------------------------------------


def _apply(model: OnnxModel, plan: BatchPlan) -> None:
    graph = model.proto.graph
    added: dict[bytes, str] = {}
    replaced: set[str] = set()
    for node in graph.node:
        first = node.output[0] if node.output else ""
        for index, name in enumerate(node.input):
            if (first, index) in plan.dropped:
                replaced.add(name)
                node.input[index] = ""
            values = plan.constants.get((first, index))
            if values is not None:
                replaced.add(name)
                node.input[index] = _add(model, values, name, added)
    if plan.repeated:
        repeat_constants(model, plan.repeated)
    for one in graphs(graph):
        for value in (*one.input, *one.value_info, *one.output):
            _free(value, plan)
    _drop_unread(graph, replaced)


def _add(model: OnnxModel, values: np.ndarray, old: str, added: dict[bytes, str]) -> str:
    """The name of an initializer with these values; one for all uses of the same old constant."""
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = helper.make_tensor("", kind, list(values.shape), values.tolist())
    key = old.encode() + b"\0" + tensor.SerializeToString()
    if key not in added:
        tensor.name = added[key] = model.fresh(f"{old or 'constant'}_any_batch")
        add_initializer(model.proto, tensor)
    return added[key]


def _free(value: onnx.ValueInfoProto, plan: BatchPlan) -> None:
    """Write the symbol into a value info."""
    batch = plan.values.get(value.name)
    dims = value.type.tensor_type.shape.dim
    if batch is not None and len(dims) > batch.axis:
        times = "" if batch.factor == 1 else f"{batch.factor}*"
        dims[batch.axis].dim_param = f"{times}{plan.symbol}"


def _drop_unread(graph: onnx.GraphProto, replaced: set[str]) -> None:
    """Remove the constants whose every use was replaced."""
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    if any(has_bodies(node) for node in graph.node):
        return
    unread = replaced - read
    for holder in (graph.initializer, graph.input):
        for position in reversed(range(len(holder))):
            if holder[position].name in unread:
                del holder[position]
    for position in reversed(range(len(graph.node))):
        node = graph.node[position]
        if node.op_type == "Constant" and node.output[0] in unread:
            del graph.node[position]
