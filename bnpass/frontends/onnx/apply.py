"""Applies planned edits to the ModelProto that a graph was read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from bnpass.frontends.onnx.editor import Editor
from bnpass.frontends.onnx.numbers import NewOperator, ScopeNumbers
from bnpass.frontends.onnx.read import Scope
from bnpass.ir.edits import (
    LEFTOVER_EPSILON,
    AddedOperator,
    GraphEdits,
    Leftover,
    NewBranch,
    NewNorm,
)
from bnpass.ir.graph import Op
from bnpass.onnx_model.attributes import set_attributes
from bnpass.onnx_model.messages import become, copied, np_dtype
from bnpass.onnx_model.model import OnnxModel
from bnpass.passes.dead import dead_operators


def apply_edits(
    model: OnnxModel,
    scope: Scope,
    edits: GraphEdits,
    numbers: ScopeNumbers,
    settled: Sequence[onnx.NodeProto] = (),
) -> None:
    """Change a scope's graph in place, with the numbers that were worked out for the edits.

    Args:
        model: the model.
        scope: the graph.
        edits: what is planned.
        numbers: what was worked out for it.
        settled: nodes of constants that become Constant nodes.
    """
    editor = Editor(model, scope)
    operators = numbers.operators
    names = {(c.op.name, c.index): c.name for c in edits.constants if c.name}
    for place, new in enumerate(operators):
        _rewrite(editor, new, names)
        operators[place] = NewOperator(new.op)  # the numbers are in the model now
    made: dict[str, str] = {}
    for added, constants in zip(edits.added, numbers.added, strict=True):
        _add_operator(editor, added, constants, made)
    for read in edits.inputs:
        name = made.get(read.value, read.value)
        editor.set_input(scope.nodes[read.op.name], read.index, name)
    for op in dead_operators(scope.graph, edits.added):
        editor.delete(op)
    last = {left.ops[-1].name for left in edits.leftovers}
    order = scope.graph.order
    for op, index in sorted(edits.removed, key=lambda pair: order[pair[0].name]):
        if op.name not in last:
            editor.remove(op, index)
    data = {op.name: index for op, index in edits.removed}
    for left in edits.leftovers:
        _write_leftover(editor, left, data, numbers.leftovers[left.ops[-1].name])
    for node in settled:
        editor.settle(node)
    editor.finish()


def _add_operator(
    editor: Editor, added: AddedOperator, constants: dict[int, np.ndarray], made: dict[str, str]
) -> None:
    """Put an operator in front of another; a value that it replaces is read under its name.

    Args:
        editor: of the graph.
        added: what comes.
        constants: the numbers of its new constants.
        made: names that new values have in the model, filled.
    """
    op, graph = added.op, editor.scope.graph
    count = max((len(op.inputs), *(index + 1 for index in constants)))
    inputs = [made.get(name, name) for name in map(editor.resolve, map(op.input, range(count)))]
    for index, array in constants.items():
        name = added.names.get(index, f"{op.name}.{index}")
        inputs[index] = editor.add_initializer(name, array)
    domain, kind = op.kind.rpartition("::")[::2] if "::" in op.kind else ("", op.kind)
    (output,) = op.outputs
    if graph.producer(output) is None:
        made[output] = editor.model.fresh(output)
    node = onnx.helper.make_node(
        kind, inputs, [made.get(output, output)], name=editor.model.fresh(op.name),
        domain=domain or None,
    )  # fmt: skip
    set_attributes(node, **op.attrs)
    editor.insert_before(editor.scope.nodes[added.before.name], node)


def _rewrite(editor: Editor, new: NewOperator, names: Mapping[tuple[str, int], str]) -> None:
    for index, numbers in new.constants.items():
        name = names.get((new.op.name, index), "")
        if name:
            node = editor.scope.nodes[new.op.name]
            editor.set_input(node, index, editor.add_initializer(name, np.asarray(numbers)))
        else:
            editor.set_constant(new.op, index, numbers, new.copies.get(index, ""))
    if new.attrs:
        set_attributes(editor.scope.nodes[new.op.name], **new.attrs)
    if new.add is not None:
        _add_behind(editor, new.op, new.add)


def _add_behind(editor: Editor, op: Op, shift: np.ndarray) -> None:
    """Put an Add behind an operator; the operator's value keeps its name behind the Add."""
    node, fresh = editor.scope.nodes[op.name], editor.model.fresh
    name = editor.add_initializer(f"{op.name}.bias", shift)
    result = node.output[0]
    node.output[0] = inner = fresh(f"{result}_product")
    add = onnx.helper.make_node("Add", [inner, name], [result], name=fresh(f"{op.name}.add"))
    editor.insert_behind(node, add)


def _write_leftover(
    editor: Editor, left: Leftover, data: dict[str, int], numbers: dict[str, np.ndarray]
) -> None:
    last, first = left.ops[-1], left.ops[0]
    node = editor.scope.nodes[last.name]
    source = editor.resolve(first.inputs[data[first.name]])
    for name in node.input:
        if name != last.inputs[data[last.name]]:
            editor.release(name)
    base, result = node.name or node.output[0], node.output[0]
    names = [editor.add_initializer(f"{base}.{k}", array) for k, array in numbers.items()]
    if left.style == "bn":
        become(node, "BatchNormalization", [source, *names], [result])
        set_attributes(node, epsilon=LEFTOVER_EPSILON)
    elif len(names) == 1:
        become(node, "Mul", [source, *names], [result])
    else:
        fresh = editor.model.fresh
        inner = fresh(f"{result}_scaled")
        become(node, "Mul", [source, names[0]], [inner])
        add = onnx.helper.make_node(
            "Add", [inner, names[1]], [result], name=fresh(f"{base}.add")
        )
        editor.insert_behind(node, add)


# --- insertion


def apply_insert(model: OnnxModel, scope: Scope, norms: Sequence[NewNorm]) -> None:
    """Insert BatchNorms and drop the biases that they make redundant, in place."""
    editor = Editor(model, scope)
    drops = {(drop.op.name, drop.index): drop for norm in norms for drop in norm.drops}
    order = scope.graph.order
    for drop in sorted(drops.values(), key=lambda d: order[d.op.name]):
        if drop.whole:
            editor.remove(drop.op, drop.data)
        else:
            _drop_bias(editor, drop.op, drop.index)
    for norm in norms:
        _insert_norm(editor, norm)
    editor.finish()


def _drop_bias(editor: Editor, op: Op, index: int) -> None:
    node = editor.scope.nodes[op.name]
    if op.kind == "Gemm" and editor.model.opset < 11:  # C is required there
        constant = editor.scope.graph.constant(op.inputs[index])
        assert constant is not None
        zero = np.zeros((1,), np_dtype(constant.dtype))
        editor.set_input(node, index, editor.add_initializer(f"{op.name}.zero", zero))
    else:
        editor.drop_input(node, index)


def _insert_norm(editor: Editor, norm: NewNorm) -> None:
    name = editor.model.fresh(norm.name)
    names = _norm_inputs(editor, norm, name, norm.scale, norm.bias, norm.mean, norm.var)
    anchor, value = _source(editor, norm)
    result = editor.model.fresh(f"{name}.output")
    source, behind = value, []
    if norm.axis != 1:
        perm = list(range(norm.rank))
        perm[1], perm[norm.axis] = perm[norm.axis], perm[1]
        source = editor.model.fresh(f"{name}.channels_first")
        behind.append(
            onnx.helper.make_node("Transpose", [value], [source], f"{name}.in", perm=perm)
        )
    inner = result if norm.axis == 1 else editor.model.fresh(f"{name}.normalized")
    behind.append(
        onnx.helper.make_node(
            "BatchNormalization",
            [source, *names],
            [inner],
            name,
            epsilon=norm.epsilon,
            momentum=1.0 - norm.momentum,
        )
    )
    if norm.axis != 1:
        behind.append(
            onnx.helper.make_node("Transpose", [inner], [result], f"{name}.out", perm=perm)
        )
    editor.insert_behind(anchor, *behind)
    for branch in norm.branches:
        result = _insert_branch(editor, norm, branch, anchor, result)
    if norm.readers is None:
        editor.redirect(norm.value, result)
        return
    for op in norm.readers:
        editor.replace_reads(editor.scope.nodes[op], norm.value, result)


def _norm_inputs(editor: Editor, norm: NewNorm, name: str, *numbers: np.ndarray) -> list[str]:
    """Names of new constants: gamma, beta, mean and variance in the type of the value."""
    dtype = np_dtype(editor.scope.graph.dtype(norm.value) or "float32")
    keys = ("weight", "bias", "running_mean", "running_var")
    return [editor.add_initializer(f"{name}.{key}", array.astype(dtype))
            for key, array in zip(keys, numbers, strict=True)]  # fmt: skip


def _insert_branch(
    editor: Editor, norm: NewNorm, new: NewBranch, anchor: onnx.NodeProto | None, total: str
) -> str:
    """Add a branch with its BatchNorm to a value; the sum's name."""
    fresh, branch, make = editor.model.fresh, new.branch, onnx.helper.make_node
    source, nodes = editor.resolve(branch.root), []
    if new.weight is not None:
        name, inner = fresh(branch.name), fresh(f"{branch.name}.product")
        dtype = np_dtype(editor.scope.graph.dtype(norm.value) or "float32")
        weight = editor.add_initializer(f"{name}.weight", new.weight.astype(dtype))
        nodes.append(make("Conv", [source, weight], [inner], name))
        set_attributes(nodes[0], **branch.attrs)
        source = inner
    name = fresh(f"{branch.name}_bn")
    zeros, ones = np.zeros_like(new.scale), np.ones_like(new.scale)
    inputs = [source, *_norm_inputs(editor, norm, name, new.scale, zeros, zeros, ones)]
    output, result = fresh(f"{name}.output"), fresh(f"{branch.name}.sum")
    nodes.append(make("BatchNormalization", inputs, [output], name, epsilon=norm.epsilon,
                      momentum=1.0 - norm.momentum))  # fmt: skip
    nodes.append(make("Add", [total, output], [result], fresh(f"{branch.name}.add")))
    editor.insert_behind(anchor, *nodes)
    return result


def _source(editor: Editor, norm: NewNorm) -> tuple[onnx.NodeProto | None, str]:
    """(the node to insert behind, the value to normalise), clones made where they are asked for.

    No node makes an input of the graph.
    """
    producer = editor.scope.graph.producer(norm.value)
    anchor = None if producer is None else editor.scope.nodes[producer.name]
    if not norm.clones:
        return anchor, editor.resolve(norm.value)
    names: dict[str, str] = {}
    for op in norm.clones:
        copy = copied(editor.scope.nodes[op.name])
        copy.name = editor.model.fresh(f"{op.name}_clone")
        copy.input[:] = [names.get(name, name) for name in copy.input]
        for name in filter(None, op.outputs):
            names[name] = editor.model.fresh(f"{name}_clone")
        copy.output[:] = [names.get(name, name) for name in copy.output]
        editor.insert_behind(anchor, copy)
    return anchor, names[norm.value]
