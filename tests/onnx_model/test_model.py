"""One model: what it says, fresh names, dimensions that a file leaves open."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnpass
from bnpass.frontends.onnx.folding import FoldOptions, fold, plan
from bnpass.frontends.onnx.free_batch import free_batch
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.names import Names
from bnpass.onnx_model.shapes import stated


def unsized(size: int) -> onnx.ModelProto:
    """Rows of 4 numbers through MatMul, BatchNormalization and Reshape; the batch says ``size``."""
    arrays = {
        "w": np.eye(4, dtype=np.float32) * 2,
        **{k: np.full(4, v, np.float32) for k, v in (("s", 3), ("b", 1), ("m", 0.5), ("v", 2))},
        "shape": np.array([-1, 2, 2]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Reshape", ["n", "shape"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, 2, 2]),
    ]
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_of_0_or_below_is_unknown_everywhere(size: int) -> None:
    model = unsized(size)
    assert stated(model.graph.input[0]) == (None, 4)
    assert OnnxModel.of(model).inputs[0].shape == (None, 4)
    assert free_batch(model) == model  # nothing is fixed
    folded = bnpass.fold(model, verify=size < 0)  # onnxruntime takes a stated 0 at its word
    assert [n.op_type for n in folded.graph.node] == ["MatMul", "Add", "Reshape"]


def test_a_module_imported_from_it_takes_any_batch() -> None:
    torch = pytest.importorskip("torch")
    gm = bnpass.to_torch(unsized(0)).eval()
    for count in (1, 3):
        assert gm(torch.ones(count, 4)).shape == (count, 2, 2)


def test_fresh_names_are_those_of_no_body_either() -> None:
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["inside"])],
        "inner",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, [1])],
    )
    node = helper.make_node("If", ["c"], ["y"], "branch", then_branch=inner, else_branch=inner)
    ports = [helper.make_tensor_value_info(n, k, [1]) for n, k in (("c", 9), ("x", 1), ("y", 1))]
    model = helper.make_model(helper.make_graph([node], "g", ports[:2], ports[2:]))
    fresh = Names(model).fresh
    assert [fresh("inside"), fresh("inside"), fresh("branch"), fresh("c"), fresh("new")] == [
        "inside_2", "inside_3", "branch_2", "c_2", "new",
    ]  # fmt: skip


def test_names_taken_by_an_edit_are_taken() -> None:
    model = OnnxModel.of(unsized(2)).copy()
    assert [model.fresh("h"), model.fresh("h")] == ["h_2", "h_3"]
    model.proto.graph.node[0].output[0] = model.proto.graph.node[1].input[0] = "other"
    model.forget()
    assert model.fresh("h") == "h"


@pytest.mark.parametrize("mode", ["refuse", "inference"])
def test_a_plan_leaves_the_model_alone_though_it_works_the_numbers_out(mode: str) -> None:
    model = unsized(2)
    model.graph.node[1].attribute.add(name="training_mode", type=2, i=0)
    large = np.full((4, 4), 3e38, np.float32)  # times 3 / sqrt(2): more than float32 holds
    next(t for t in model.graph.initializer if t.name == "w").CopyFrom(
        numpy_helper.from_array(large, "w")
    )
    before = model.SerializeToString(deterministic=True)
    planned = plan(OnnxModel.of(model), FoldOptions(training_mode=mode))
    assert not planned.plan.folded
    assert model.SerializeToString(deterministic=True) == before
    edited = OnnxModel.of(model).copy()
    done = fold(edited, FoldOptions(training_mode=mode))
    assert not done.plan.folded
    kept = {t.name: numpy_helper.to_array(t) for t in edited.proto.graph.initializer}
    assert np.array_equal(kept["w"], large)
