"""Shape inference that a small file cannot make endless."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from bnpass.onnx_model.carrying import _carries_little, infer_shapes


def joined(count: int, width: int = 2, inside: bool = False) -> onnx.ModelProto:
    """A vector that ``count`` Concat join to itself, ``width`` times each."""
    nodes = [helper.make_node("Concat", [f"k{i}"] * width, [f"k{i + 1}"], axis=0)
             for i in range(count)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("loc", 1)]
    start = helper.make_tensor("k0", onnx.TensorProto.INT64, [4], [1, 2, 3, 4])
    info = helper.make_tensor_value_info
    functions = []
    if inside:
        functions = [helper.make_function("loc", "f", ["k0"], [f"k{count}"], nodes, opsets)]
        nodes = [helper.make_node("f", ["k0"], [f"k{count}"], domain="loc")]
    nodes.append(helper.make_node("Relu", ["x"], ["y"]))
    graph = helper.make_graph(nodes, "g", [info("x", 1, [3])], [info("y", 1, [3])], [start])
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("count", "width"), [(60, 2), (3, 500), (1, 1_000_000)])
def test_vectors_that_grow_are_not_carried_along(count: int, width: int, inside: bool) -> None:
    model = joined(count, width, inside)
    assert not _carries_little(model)
    infer_shapes(model)


@pytest.mark.parametrize("inside", [False, True])
def test_short_ones_are(inside: bool) -> None:
    model = joined(3, 2, inside)
    assert _carries_little(model)
    found = {v.name: v for v in infer_shapes(model).graph.value_info}
    if not inside:
        assert found["k3"].type.tensor_type.shape.dim[0].dim_value == 32


def test_many_independent_joins_are_few_entries() -> None:
    nodes = [helper.make_node("Concat", ["a", "a"], [f"k{i}"], axis=0) for i in range(500)]
    graph = helper.make_graph(nodes, "g", [], [],
                              [helper.make_tensor("a", onnx.TensorProto.INT64, [2], [1, 2])])
    assert _carries_little(helper.make_model(graph))


def test_long_vectors_of_which_the_length_alone_is_known() -> None:
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["v"]),
             helper.make_node("Concat", ["v", "v"], ["y"], axis=0)]
    flat = helper.make_tensor("flat", onnx.TensorProto.INT64, [1], [10**10])
    graph = helper.make_graph(nodes, "g", [info("x", 1, [10**5, 10**5])],
                              [info("y", 1, [2 * 10**10])], [flat])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert not _carries_little(model)
    infer_shapes(model)
