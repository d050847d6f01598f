"""Applies planned edits to the ModelProto that a graph was read from."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable

import numpy as np
import onnx

from bnpass.frontends.onnx.editor import Editor
from bnpass.frontends.onnx.read import Reading, Scope
from bnpass.ir.affine import Map
from bnpass.ir.edits import LEFTOVER_EPSILON, FoldEdits, Leftover, NewNorm, Rewrite
from bnpass.ir.graph import Op
from bnpass.ir.weights import kernel_form, new_kernels, new_weights
from bnpass.onnx_model.attributes import set_attributes
from bnpass.onnx_model.messages import np_dtype
from bnpass.passes.planner import Planner
from bnpass.rules import RuleContext

_TOGETHER = 1 << 17  # entries of kernels rewritten at once: 1 MiB in float64


def apply_fold(reading: Reading, scope: Scope, edits: FoldEdits) -> int:
    """Change a scope's graph in place; returns the bytes of weights that were duplicated.

    Raises:
        OverflowedError: some new weight is not finite; the model is then half edited.
    """
    editor = Editor(reading, scope)
    context = Planner(scope.graph)
    alike, others = _by_form(edits.rewrites, context)
    for group in alike:
        ops = [rewrite.op for rewrite in group]
        new = new_kernels(group, context)
        for index, arrays in new.constants.items():
            editor.set_constants(ops, index, arrays)
        for index, scaled in new.scaled.items():
            editor.set_scaled(ops[0], index, scaled)
    for rewrite in others:
        new = new_weights(rewrite, context)
        for index, array in sorted(new.constants.items()):
            editor.set_constant(rewrite.op, index, array)
        for index, scaled in new.scaled.items():
            editor.set_scaled(rewrite.op, index, scaled)
        node = scope.nodes[rewrite.op.name]
        if new.attrs:
            set_attributes(node, **new.attrs)
        if new.add is not None:
            _add_behind(editor, rewrite.op, new.add)
    last = {left.ops[-1].name for left in edits.leftovers}
    order = scope.graph.order
    for op, data in sorted(edits.removed, key=lambda pair: order[pair[0].name]):
        if op.name not in last:
            editor.remove(op, data)
    for left in edits.leftovers:
        _write_leftover(editor, left, {op.name: data for op, data in edits.removed})
    editor.finish()
    return editor.grown


def _by_form(
    rewrites: Iterable[Rewrite], context: RuleContext
) -> tuple[list[list[Rewrite]], list[Rewrite]]:
    """Convolutions to be rewritten together, few enough for a processor's cache; and the rest."""
    open_groups: dict[Hashable, list[Rewrite]] = {}
    groups: list[list[Rewrite]] = []
    others = []
    for rewrite in rewrites:
        form = kernel_form(rewrite, context)
        if form is None:
            others.append(rewrite)
            continue
        group = open_groups.get(form)
        if group is None or len(group) * _entries(rewrite, context) >= _TOGETHER:
            group = open_groups[form] = []
            groups.append(group)
        group.append(rewrite)
    return groups, others


def _entries(rewrite: Rewrite, context: RuleContext) -> int:
    weight = context.constant(rewrite.op.inputs[1])
    return 0 if weight is None else math.prod(weight.shape)


def _add_behind(editor: Editor, op: Op, shift: np.ndarray) -> None:
    """Put an Add behind an operator; the operator's value keeps its name behind the Add."""
    node = editor.scope.nodes[op.name]
    axes = [i for i, n in enumerate(shift.shape) if n != 1]
    shape = shift.shape[axes[0] :] if axes else (1,)
    dtype = editor.scope.graph.dtype(op.outputs[0]) or "float32"
    for constant in map(editor.scope.graph.constant, op.inputs[:2]):
        dtype = dtype if constant is None else constant.dtype
    name = editor.add_rounded(op, f"{op.name}.bias", shift.reshape(shape), dtype)
    result = node.output[0]
    inner = editor.unique(f"{result}_product")
    node.output[0] = inner
    add = onnx.helper.make_node(
        "Add", [inner, name], [result], name=editor.unique(f"{op.name}.add")
    )
    editor.insert_behind(node, add)


def _write_leftover(editor: Editor, left: Leftover, data: dict[str, int]) -> None:
    last, first = left.ops[-1], left.ops[0]
    node = editor.scope.nodes[last.name]
    source = editor.resolve(first.inputs[data[first.name]])
    dtype = editor.scope.graph.dtype(last.outputs[0]) or "float32"
    for name in node.input:
        if name != last.inputs[data[last.name]]:
            editor.release(name)

    def add(name: str, array: np.ndarray) -> str:
        return editor.add_rounded(last, name, array, dtype)

    if left.style == "bn":
        _as_batch_norm(node, left.map, source, add)
    else:
        _as_affine(editor, node, left.map, source, add)


_Add = Callable[[str, np.ndarray], str]
"""Stores a new constant under a name like the one given; returns its name."""


def _as_batch_norm(node: onnx.NodeProto, m: Map, source: str, add: _Add) -> None:
    n = max(m.shape)
    vectors = m.vectors(1, n)
    assert vectors is not None
    base = node.name or node.output[0]
    arrays = {
        "scale": vectors[0] * np.sqrt(1 + LEFTOVER_EPSILON),
        "bias": vectors[1],
        "mean": np.zeros(n),
        "var": np.ones(n),
    }
    names = [add(f"{base}.{k}", array) for k, array in arrays.items()]
    result = node.output[0]
    node.op_type, node.domain = "BatchNormalization", ""
    del node.attribute[:]
    del node.input[:]
    del node.output[:]
    node.input.extend([source, *names])
    node.output.append(result)
    node.attribute.append(onnx.helper.make_attribute("epsilon", LEFTOVER_EPSILON))


def _as_affine(editor: Editor, node: onnx.NodeProto, m: Map, source: str, add: _Add) -> None:
    base, result = node.name or node.output[0], node.output[0]
    scale = add(f"{base}.scale", m.scale)
    node.op_type, node.domain = "Mul", ""
    del node.attribute[:]
    del node.input[:]
    del node.output[:]
    node.input.extend([source, scale])
    if not m.has_shift:
        node.output.append(result)
        return
    shift = add(f"{base}.shift", m.shift)
    inner = editor.unique(f"{result}_scaled")
    node.output.append(inner)
    new = onnx.helper.make_node("Add", [inner, shift], [result], name=editor.unique(f"{base}.add"))
    editor.insert_behind(node, new)


# --- insertion


def apply_insert(reading: Reading, scope: Scope, norms: list[NewNorm]) -> None:
    """Insert BatchNorms and drop the biases that they make redundant, in place."""
    editor = Editor(reading, scope)
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
    if op.kind == "Gemm" and editor.reading.opset < 11:  # C is required there
        constant = editor.scope.graph.constant(op.inputs[index])
        assert constant is not None
        zero = np.zeros((1,), np_dtype(constant.dtype))
        editor.set_input(node, index, editor.add_initializer(f"{op.name}.zero", zero))
    else:
        editor.drop_input(node, index)


def _insert_norm(editor: Editor, norm: NewNorm) -> None:
    dtype = np_dtype(editor.scope.graph.dtype(norm.value) or "float32")
    arrays = {
        "weight": norm.scale,
        "bias": norm.bias,
        "running_mean": norm.mean,
        "running_var": norm.var,
    }
    name = editor.unique(norm.name)
    names = [editor.add_initializer(f"{name}.{k}", a.astype(dtype)) for k, a in arrays.items()]
    anchor, value = _source(editor, norm)
    result = editor.unique(f"{name}.output")
    source, behind = value, []
    if norm.axis != 1:
        perm = list(range(norm.rank))
        perm[1], perm[norm.axis] = perm[norm.axis], perm[1]
        source = editor.unique(f"{name}.channels_first")
        behind.append(
            onnx.helper.make_node("Transpose", [value], [source], f"{name}.in", perm=perm)
        )
    inner = result if norm.axis == 1 else editor.unique(f"{name}.normalized")
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
    if norm.readers is None:
        editor.redirect(norm.value, result)
        return
    for op in norm.readers:
        editor.replace_reads(editor.scope.nodes[op], norm.value, result)


def _source(editor: Editor, norm: NewNorm) -> tuple[onnx.NodeProto, str]:
    """(the node to insert behind, the value to normalise), clones made where they are asked for."""
    producer = editor.scope.graph.producer(norm.value)
    assert producer is not None
    anchor = editor.scope.nodes[producer.name]
    if not norm.clones:
        return anchor, editor.resolve(norm.value)
    names: dict[str, str] = {}
    for op in norm.clones:
        copy = onnx.NodeProto()
        copy.CopyFrom(editor.scope.nodes[op.name])
        copy.name = editor.unique(f"{op.name}_clone")
        copy.input[:] = [names.get(name, name) for name in copy.input]
        for name in filter(None, op.outputs):
            names[name] = editor.unique(f"{name}_clone")
        copy.output[:] = [names.get(name, name) for name in copy.output]
        editor.insert_behind(anchor, copy)
    return anchor, names[norm.value]
