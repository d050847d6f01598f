"""What drawings need of a model: its graph, and what is told apart in it."""

from __future__ import annotations

from bnpass.frontends.onnx.read import read
from bnpass.ir.graph import Graph
from bnpass.onnx_model.model import Given, OnnxModel
from bnpass.passes.fold import plan_fold
from bnpass.passes.nonlinear import find_nonlinearities
from bnpass.report.drawing import Marks


def graph_of(model: Given) -> Graph:
    """The main graph of a model; the weights of a file are read when they are asked for."""
    return read(OnnxModel.of(model, data=False)).main.graph


def marks_of(graph: Graph) -> Marks:
    """What a fold would take away, and the nonlinearities."""
    folding = {name for entry in plan_fold(graph).folded for name in entry.nodes}
    return Marks(folding, {found.op.name for found in find_nonlinearities(graph)})
