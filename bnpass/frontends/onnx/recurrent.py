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
from bnpass.frontends.onnx.read import Reading, Scope, read
from bnpass.ir.graph import RECURRENT, Constant, Graph, Op
from bnpass.passes.nonlinear import is_split


def split(model: onnx.ModelProto, wanted: Callable[[Op], bool]) -> list[str]:
    """Split the recurrent layers of the main graph, in place; returns notes for people."""
    if not any(node.op_type in RECURRENT for node in model.graph.node):
        return []
    reading = read(model)
    editor = Editor(reading, reading.main)
    notes = []
    for op in reading.main.graph.ops_in_order:
        if op.kind not in RECURRENT or is_split(op, reading.main.graph) or not wanted(op):
            continue
        if not _constant_weights(op, reading.main.graph):
            notes.append(f"{op.kind} {op.name!r}: its weights are no constants")
            continue
        _split(op, editor, reading)
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


def _split(op: Op, editor: Editor, reading: Reading) -> None:
    scope = reading.main
    node, weight = scope.nodes[op.name], _array(scope, op.inputs[1])
    width = weight.shape[0] * weight.shape[1]
    matrix = np.ascontiguousarray(weight.reshape(width, -1).T)
    name = editor.add_initializer(f"{op.name}.input_weight", matrix)
    value = editor.unique(f"{op.name}_contribution")
    new = [
        onnx.helper.make_node(
            "MatMul", [op.inputs[0], name], [value], editor.unique(f"{op.name}_input")
        )
    ]
    if op.input(3):
        half = weight.shape[1]
        bias = _array(scope, op.inputs[3])
        added = editor.add_initializer(f"{op.name}.input_bias", bias[:, :half].reshape(-1).copy())
        product, value = value, editor.unique(f"{op.name}_biased")
        new.append(
            onnx.helper.make_node(
                "Add", [product, added], [value], editor.unique(f"{op.name}_input_bias")
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

    Raises:
        OverflowedError: some new weight is not finite; the model is then half edited.
    """
    graph = reading.main.graph
    found = {name: pair for name, pair in joinable(graph).items() if name not in but}
    if not found:
        return []
    editor = Editor(reading, reading.main)
    for name, (product, add) in found.items():
        _join(graph.ops[name], product, add, editor)
    editor.finish()
    return list(found)


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


def _join(op: Op, product: Op, add: Op | None, editor: Editor) -> None:
    scope = editor.scope
    weight = _array(scope, op.inputs[1]).astype(np.float64)
    matrix = _array(scope, product.inputs[1]).astype(np.float64)
    editor.set_constant(op, 1, weight @ matrix.T)
    if add is not None:
        place = next(i for i in (0, 1) if scope.graph.constant(add.inputs[i]) is not None)
        shift = np.broadcast_to(
            _array(scope, add.inputs[place]).astype(np.float64).reshape(-1), (weight.shape[2],)
        )
        half = weight.shape[1]
        bias = np.zeros((weight.shape[0], 2 * half))
        if op.input(3):
            bias += _array(scope, op.inputs[3]).astype(np.float64)
        bias[:, :half] += weight @ shift
        editor.set_constant(op, 3, bias)
        editor.remove(product, 0)
        editor.remove(add, 1 - place)
    else:
        editor.remove(product, 0)
