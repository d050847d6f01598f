"""Recurrent layers: the input's contribution taken out of them for a BatchNorm.

``split``: RNN(x; W, Wb, R, Rb) becomes RNN(x*W + Wb; identity, 0, R, Rb): the MatMul's output is
the input-to-hidden contribution of all gates and directions, over time and batch, and a value
like any other to normalise. ``bnpass.passes.recurrent`` has the inverse.

Sources: Laurent et al. 2015 (arXiv:1510.01378), Cooijmans et al. 2016 (arXiv:1603.09025); ONNX
operators RNN, LSTM, GRU: X (time, batch, input), W (directions, gates*hidden, input),
B (directions, 2*gates*hidden) = Wb, Rb.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from bnpass.frontends.onnx.editor import Editor
from bnpass.frontends.onnx.read import Scope, read
from bnpass.ir.graph import Op
from bnpass.ir.operators import RECURRENT
from bnpass.onnx_model.model import OnnxModel
from bnpass.passes.nonlinear import is_split
from bnpass.passes.recurrent import constant_weights


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
        if not constant_weights(op, reading.main.graph):
            notes.append(f"{op.kind} {op.name!r}: its weights are no constants")
            continue
        _split(op, editor)
        if op.input(4):
            notes.append(
                f"{op.kind} {op.name!r}: padded time steps (sequence_lens) enter the statistics"
            )
    editor.finish()
    return notes


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
