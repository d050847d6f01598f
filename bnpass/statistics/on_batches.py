"""BNs of an ONNX model put on the statistics of the batch at hand, which it gives out."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from bnpass.onnx_model.attributes import attribute, opset_of, set_attributes
from bnpass.onnx_model.messages import copied, replace_nodes
from bnpass.onnx_model.signature import inferred
from bnpass.statistics.choosing import Choose
from bnpass.statistics.nodes import Builder, MomentNodes, add_moments, prune


def put_on_batches(
    model: onnx.ModelProto, wanted: set[str], choose: Choose
) -> dict[str, MomentNodes]:
    """Put, in place, the chosen BNs on batch statistics; their moments become the outputs.

    Returns the moments by the BN's output name.
    """
    kinds = {name: port.kind for name, port in inferred(model).items()}
    build = Builder(model)
    nodes: list[onnx.NodeProto] = []
    moments: dict[str, MomentNodes] = {}
    for node in model.graph.node:
        if node.output and node.output[0] in wanted and node.op_type == "BatchNormalization":
            build.nodes = []
            moments[node.output[0]] = _on_batch(build, node, kinds, choose)
            nodes += build.nodes
        else:
            dropout_off(node, opset_of(model))
            nodes.append(node)
    replace_nodes(model.graph, [*build.head, *nodes])
    fetch_only(model, moments)
    return moments


def fetch_only(model: onnx.ModelProto, moments: dict[str, MomentNodes]) -> None:
    """Let moments be the outputs, in place; what only others needed goes."""
    del model.graph.output[:]
    names = [name for m in moments.values() for name in m.outputs]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    prune(model)


def dropout_off(node: onnx.NodeProto, opset: int) -> None:
    """Let a Dropout be what it is in inference, in place."""
    if node.op_type == "Dropout" and opset >= 12 and len(node.input) == 3:
        del node.input[2:]  # training_mode; absent means inference


def _on_batch(
    build: Builder, node: onnx.NodeProto, kinds: dict[str, int], choose: Choose
) -> MomentNodes:
    """Add the moments of a BN's input, and what normalises with them, under the BN's output."""
    kind = kinds.get(node.input[0]) or TensorProto.FLOAT
    found = add_moments(build, node.input[0], 1, kind, choose(build, node.input[0]))
    if kind == found.kind:
        _normalise(build, node, found)
    else:
        _normalise_wide(build, node, found, kind)
    return found


def _normalise(build: Builder, node: onnx.NodeProto, found: MomentNodes) -> None:
    """Case 1, float32 and float64: a BN in inference mode that is fed the batch's moments."""
    flat = build.constant([-1])
    mean, var = (
        build.add("Reshape", build.cast(m, found.kind, TensorProto.DOUBLE), flat)
        for m in (found.mean, found.var)
    )
    copy = copied(node)
    copy.input[3:5] = mean, var
    set_attributes(copy, training_mode=None, momentum=None)
    build.nodes.append(copy)


def _normalise_wide(build: Builder, node: onnx.NodeProto, found: MomentNodes, kind: int) -> None:
    """Case 2, fp16 and bf16: spelt out in float32, where the variance cannot overflow."""
    column, double = build.constant([1, -1, 1]), TensorProto.DOUBLE
    epsilon = build.constant(attribute(node, "epsilon", 1e-5), np.float64)
    sigma = build.add("Sqrt", build.add("Add", found.var, epsilon))
    gamma = build.add("Reshape", build.cast(node.input[1], double), column)
    scale = build.cast(build.add("Div", gamma, sigma), found.kind)
    beta = build.add("Reshape", build.cast(node.input[2], found.kind), column)
    shifted = build.add("Add", build.add("Mul", found.centred, scale), beta)
    shaped = build.add("Reshape", shifted, build.add("Shape", node.input[0]))
    build.add("Cast", shaped, to=kind, output=node.output[0])
