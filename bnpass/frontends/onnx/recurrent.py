"""Recurrent layers: the input's contribution taken out of them for a BatchNorm, and put back.

``split``: RNN(x; W, Wb, R, Rb) becomes RNN(x*W + Wb; identity, 0, R, Rb): the MatMul's output is
the input-to-hidden contribution of all gates and directions, over time and batch, and a value
like any other to normalise. ``join`` is the inverse: a MatMul (and Add) of just that width in
front of a recurrent layer goes back into its W and Wb, whatever training has made of them.

Sources: Laurent et al. 2015 (arXiv:1510.01378), Cooijmans et al. 2016 (arXiv:1603.09025); ONNX
operators RNN, LSTM, GRU: X (time, batch, input), W (directions, gates*hidden, input),
B (directions, 2*gates*hidden) = Wb, Rb.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import numpy as np
import onnx

from bnpass.frontends.onnx.editor import Editor
from bnpass.frontends.onnx.numbers import Calculation, Numbers
from bnpass.frontends.onnx.read import Reading, Scope, read
from bnpass.ir.graph import Constant, Graph, Op
from bnpass.ir.operators import RECURRENT
from bnpass.onnx_model.model import OnnxModel
from bnpass.passes.nonlinear import is_split


def split(model: OnnxModel, wanted: Callable[[Op], bool]) -> list[str]:
    """Split the recurrent layers of the main graph, in place; returns notes for people."""
    if not any(node.op_type in RECURRENT for node in model.proto.graph.node):
        return []
    reading = read(model)
    editor = Editor(model, reading.main)
    notes = []
    for op in reading.main.graph.ops_in_order:
        if op.kind not in RECURRENT or is_split(op, reading.main.graph) or not wanted(op):
            continue
        if not _constant_weights(op, reading.main.graph):
            notes.append(f"{op.kind} {op.name!r}: its weights are no constants")
            continue
        _split(op, editor)
        if op.input(4):
            notes.append(
                f"{op.kind} {op.name!r}: padded time steps (sequence_lens) enter the statistics"
            )
    editor.finish()
    return notes


def _constant_weights(op: Op, graph: Graph) -> bool:
    names = [op.inputs[1], *([op.inputs[3]] if op.input(3) else [])]
    return all(graph.constant(name) is not None for name in names)


def _array(scope: Scope, name: str) -> np.ndarray:
    constant = scope.graph.constant(name)
    assert constant is not None
    return constant.load()


def _split(op: Op, editor: Editor) -> None:
    scope = editor.scope
    node, weight = scope.nodes[op.name], _array(scope, op.inputs[1])
    width = weight.shape[0] * weight.shape[1]
    matrix = np.ascontiguousarray(weight.reshape(width, -1).T)
    name = editor.add_initializer(f"{op.name}.input_weight", matrix)
    value = editor.model.fresh(f"{op.name}_contribution")
    new = [
        onnx.helper.make_node(
            "MatMul", [op.inputs[0], name], [value], editor.model.fresh(f"{op.name}_input")
        )
    ]
    if op.input(3):
        half = weight.shape[1]
        bias = _array(scope, op.inputs[3])
        added = editor.add_initializer(f"{op.name}.input_bias", bias[:, :half].reshape(-1).copy())
        product, value = value, editor.model.fresh(f"{op.name}_biased")
        new.append(
            onnx.helper.make_node(
                "Add", [product, added], [value], editor.model.fresh(f"{op.name}_input_bias")
            )
        )
        rest = np.concatenate([np.zeros_like(bias[:, :half]), bias[:, half:]], 1)
        editor.set_input(node, 3, editor.add_initializer(f"{op.name}.state_bias", rest))
    eye = np.eye(width, dtype=weight.dtype).reshape(weight.shape[0], weight.shape[1], width)
    editor.set_input(node, 1, editor.add_initializer(f"{op.name}.identity", eye))
    editor.set_input(node, 0, value)
    editor.insert_before(node, *new)


def joinable(graph: Graph) -> dict[str, tuple[Op, Op | None]]:
    """The MatMul, and the Add behind it, in front of every layer that could take them in."""
    return {
        op.name: pair
        for op in graph.ops_in_order
        if op.kind in RECURRENT and (pair := _contribution(op, graph)) is not None
    }


def join(reading: Reading, but: Set[str] = frozenset()) -> list[str]:
    """Put split contributions back into their layers, in place; returns the layers' names.

    Args:
        reading: the model.
        but: names of layers that are left alone.

    A layer whose new weights its type cannot hold is left alone, too.
    """
    graph = reading.main.graph
    found = {name: pair for name, pair in joinable(graph).items() if name not in but}
    if not found:
        return []
    calculation = Calculation(reading)
    numbers = {name: _joined(graph.ops[name], *pair, calculation) for name, pair in found.items()}
    editor = Editor(reading.model, reading.main)
    names = [name for name in found if name not in calculation.overflowed]
    for name in names:
        for index, array in numbers[name].items():
            editor.set_constant(graph.ops[name], index, array)
        product, add = found[name]
        editor.remove(product, 0)
        if add is not None:
            editor.remove(add, 1 - _shift(add, graph))
    editor.finish()
    return names


def _contribution(op: Op, graph: Graph) -> tuple[Op, Op | None] | None:
    """The MatMul, and the Add behind it, that make a layer's input and nothing else's."""
    if not is_split(op, graph) or not _constant_weights(op, graph):
        return None
    add, product = None, _only_maker(op.inputs[0], graph)
    if product is not None and product.kind == "Add":
        fixed = [i for i in (0, 1) if graph.constant(product.inputs[i]) is not None]
        if len(fixed) != 1 or not _per_gate(graph.constant(product.inputs[fixed[0]]), op, graph):
            return None
        add, product = product, _only_maker(product.inputs[1 - fixed[0]], graph)
    if product is None or product.kind != "MatMul":
        return None
    matrix = graph.constant(product.inputs[1])
    return (product, add) if matrix is not None and len(matrix.shape) == 2 else None


def _per_gate(bias: Constant | None, op: Op, graph: Graph) -> bool:
    """Whether a bias is one number a gate channel, or one for all."""
    weight = graph.constant(op.inputs[1])
    if bias is None or weight is None:
        return False
    size = int(np.prod(bias.shape))
    return size == 1 or (size == weight.shape[2] and bias.shape[-1] == size)


def _only_maker(value: str, graph: Graph) -> Op | None:
    lonely = len(graph.uses(value)) == 1 and not graph.is_output(value)
    return graph.producer(value) if lonely else None


def _shift(add: Op, graph: Graph) -> int:
    """Which input of an Add is the constant."""
    return next(i for i in (0, 1) if graph.constant(add.inputs[i]) is not None)


def _joined(
    op: Op, product: Op, add: Op | None, calculation: Calculation
) -> dict[int, Numbers]:
    """The layer's new W, and B where an Add goes into it."""
    scope = calculation.reading.main
    weight = _array(scope, op.inputs[1]).astype(np.float64)
    matrix = _array(scope, product.inputs[1]).astype(np.float64)
    arrays = {1: weight @ matrix.T}
    if add is not None:
        shift = np.broadcast_to(
            _array(scope, add.inputs[_shift(add, scope.graph)]).astype(np.float64).reshape(-1),
            (weight.shape[2],),
        )
        half = weight.shape[1]
        bias = np.zeros((weight.shape[0], 2 * half))
        if op.input(3):
            bias += _array(scope, op.inputs[3]).astype(np.float64)
        bias[:, :half] += weight @ shift
        arrays[3] = bias
    return {
        index: numbers
        for place, array in arrays.items()
        for new in calculation.rounded(scope, [op], place, array[np.newaxis])
        for index, numbers in new.constants.items()
    }
