"""A fixed batch size made symbolic, where it provably is the batch.

Axis 0 of every input is followed through the graph
(:mod:`~bnpass.frontends.onnx.free_batch.rules`).
Every operator on the way must treat the entries along it alike; a constant that spells out the size
(a Reshape to ``[1, 256]``) is replaced by one that does not. Where that cannot be shown, the node
is named and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx

from bnpass.errors import InputError
from bnpass.frontends.onnx.free_batch.repeat import repeat_constants
from bnpass.frontends.onnx.free_batch.rules import Batch, Refusal, Repeat, State, View
from bnpass.frontends.onnx.free_batch.shapes import Dims, infer, skeleton
from bnpass.frontends.onnx.free_batch.table import follow
from bnpass.onnx_model.attributes import attribute, opset_of
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.names import Names
from bnpass.onnx_model.scopes import has_bodies
from bnpass.onnx_model.shapes import stated

Use = tuple[str, int]
"""One input of one node: (first output of the node, index of the input)."""


@dataclass
class BatchPlan:
    """What has to change so that every batch size works.

    Attributes:
        symbol: the name of the free dimension; empty if there is nothing to do.
        values: value name -> the axis that is the batch, or N * factor with it.
        constants: use -> the constant to read there instead.
        dropped: uses of an optional input that goes (an initial state of zeros).
        repeated: uses of a constant of one sample that every sample gets.
    """

    symbol: str = ""
    values: dict[str, Batch] = field(default_factory=dict)
    constants: dict[Use, onnx.TensorProto] = field(default_factory=dict)
    dropped: set[Use] = field(default_factory=set)
    repeated: dict[Use, Repeat] = field(default_factory=dict)

    @property
    def changes(self) -> int:
        """How many uses change."""
        return len(self.constants) + len(self.dropped) + len(self.repeated)

    @property
    def overrides(self) -> dict[Use, onnx.TensorProto | None]:
        """Use -> the constant to read there; None where the input goes."""
        return {**self.constants, **dict.fromkeys(self.dropped)}


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
    plan = plan_batch(model)
    result = copied(model)
    if plan.symbol:
        _apply(result, plan)
    return result


def plan_batch(model: onnx.ModelProto) -> BatchPlan:
    """What :func:`free_batch` would change; reads shapes and small constants only.

    Raises:
        InputError: as :func:`free_batch`.
    """
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    batched = {i.name: dims for i in inputs if (dims := stated(i))}
    fixed = {d[0] for d in batched.values() if isinstance(d[0], int)}
    if not fixed:
        return BatchPlan()
    if len(fixed) > 1:
        listed = ", ".join(f"{n!r} {list(d)}" for n, d in batched.items())
        raise InputError(f"inputs differ on axis 0: {listed}", "there is no common batch axis")
    (size,) = fixed
    symbols = [d[0] for d in batched.values() if isinstance(d[0], str)]
    plan = BatchPlan(symbol=symbols[0] if symbols else _fresh_symbol(model))
    shapes, small = infer(_with_size(model, batched, int(size)) if symbols else model)
    states: dict[str, State] = dict.fromkeys(batched, Batch(0))
    small = small | {t.name: t for t in model.graph.initializer}
    _follow_all(model, plan, View(onnx.NodeProto(), 0, int(size), states, shapes, small), states)
    return plan


def _follow_all(
    model: onnx.ModelProto, plan: BatchPlan, first: View, states: dict[str, State]
) -> None:
    for node in model.graph.node:
        _follow_node(node, opset_of(model), plan, first, states)
    plan.values = {n: s for n, s in states.items() if isinstance(s, Batch)}


def _follow_node(
    node: onnx.NodeProto, opset: int, plan: BatchPlan, first: View, states: dict[str, State]
) -> None:
    view = View(node, opset, first.size, states, first.shapes, first.constants)
    try:
        branch = _branch(view)
        if branch is None:
            states.update(zip(node.output, follow(view), strict=False))
            _collect(view, plan)
            return
        own = [n for n in branch.node if n.op_type == "Constant" and n.attribute[0].name == "value"]
        values = {n.output[0]: n.attribute[0].t for n in own}
        first = replace(first, constants={**first.constants, **values})
        for inner in branch.node:
            before = plan.changes
            _follow_node(inner, opset, plan, first, states)
            if plan.changes > before:
                view.refuse("a constant inside of its branch spells out the batch size")
        for outer, result in zip(node.output, branch.output, strict=True):
            states[outer] = states.get(result.name)
    except Refusal as reason:
        name = node.name or next(iter(node.output), "")
        raise InputError(
            f"the batch size is fixed to {first.size} by {node.op_type} {name!r}: {reason}",
            "export the model again with a dynamic batch axis",
        ) from None


def _branch(view: View) -> onnx.GraphProto | None:
    """The branch that an If takes whatever the batch size is."""
    if view.node.op_type != "If" or view.node.domain:
        return None
    known = view.constants.get(view.node.input[0])
    if known is None or view.state(0) is not None:
        view.refuse("its condition is computed")
    taken = "then_branch" if onnx.numpy_helper.to_array(known).item() else "else_branch"
    branch: onnx.GraphProto = attribute(view.node, taken)
    return branch


def _collect(view: View, plan: BatchPlan) -> None:
    if not view.replaced and not view.dropped and not view.repeated:
        return
    first = view.node.output[0]
    for index, values in view.replaced.items():
        real = isinstance(values[0], float) if values else False
        kind = onnx.TensorProto.FLOAT if real else onnx.TensorProto.INT64
        plan.constants[first, index] = onnx.helper.make_tensor("", kind, [len(values)], values)
    plan.dropped.update((first, index) for index in view.dropped)
    plan.repeated.update({(first, index): r for index, r in view.repeated.items()})


def _fresh_symbol(model: onnx.ModelProto) -> str:
    graph = model.graph
    taken = {
        d.dim_param
        for v in (*graph.input, *graph.output, *graph.value_info)
        for d in v.type.tensor_type.shape.dim
    }
    return next(n for n in ("N", "batch", "batch_size", "bnpass_N") if n not in taken)


def _with_size(
    model: onnx.ModelProto, batched: Mapping[str, Dims], size: int
) -> onnx.ModelProto:
    """The model with ``size`` where an input is symbolic already, for shape inference only."""
    result = skeleton(model)
    for value in result.graph.input:
        if value.name in batched:
            value.type.tensor_type.shape.dim[0].dim_value = size
    return result


# -- applying --------------------------------------------------------------------------------------


def _apply(model: onnx.ModelProto, plan: BatchPlan) -> None:
    graph = model.graph
    names = Names(model)
    added: dict[bytes, str] = {}
    replaced: set[str] = set()
    for node in graph.node:
        first = node.output[0] if node.output else ""
        for index, name in enumerate(node.input):
            if (first, index) in plan.dropped:
                replaced.add(name)
                node.input[index] = ""
            tensor = plan.constants.get((first, index))
            if tensor is not None:
                replaced.add(name)
                node.input[index] = _add(model, tensor, name, added, names)
    if plan.repeated:
        repeat_constants(model, plan.repeated, names)
    for value in (*graph.input, *graph.value_info, *graph.output):
        _free(value, plan)
    _drop_unread(graph, replaced)


def _add(
    model: onnx.ModelProto,
    tensor: onnx.TensorProto,
    old: str,
    added: dict[bytes, str],
    names: Names,
) -> str:
    """The name of an initializer with these values; one for all uses of the same old constant."""
    key = old.encode() + b"\0" + tensor.SerializeToString()
    if key not in added:
        name = names.fresh(f"{old or 'constant'}_any_batch")
        made = model.graph.initializer.add()
        made.CopyFrom(tensor)
        made.name = added[key] = name
        if model.ir_version < 4:  # that format lists every initializer among the inputs
            info = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(info)
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
