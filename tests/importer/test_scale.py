"""Import costs grow with the model, and weights are held once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from bnpass.importer import to_torch, write_back  # noqa: E402


def test_a_deep_chain() -> None:
    """1,500 nodes: what is quadratic, or recursive in the depth, does not pass unnoticed."""
    nodes, weights, value = [], [], "x"
    for i in range(500):
        tensors = {"W": np.ones((2, 2, 1, 1)) / 2, "g": np.ones(2), "b": np.zeros(2)}
        tensors |= {"m": np.zeros(2), "v": np.ones(2)}
        names = {k: f"layer{i}.{k}" for k in tensors}
        weights += [
            numpy_helper.from_array(v.astype(np.float32), names[k]) for k, v in tensors.items()
        ]
        statistics = [names[k] for k in "gbmv"]
        nodes += [
            onnx.helper.make_node("Conv", [value, names["W"]], [f"c{i}"]),
            onnx.helper.make_node("BatchNormalization", [f"c{i}", *statistics], [f"n{i}"]),
            onnx.helper.make_node("Relu", [f"n{i}"], [f"r{i}"]),
        ]
        value = f"r{i}"
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2, 3, 3])
        for n in ("x", value)
    ]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    gm = to_torch(model).eval()
    assert gm(torch.ones(4, 2, 3, 3)).shape == (4, 2, 3, 3)
    assert sum(1 for _ in gm.parameters()) == 1500
    assert write_back(gm, model).SerializeToString() == model.SerializeToString()


def test_a_file_that_is_imported_leaves_no_second_copy() -> None:
    """The bytes of a model that to_torch has read itself are released tensor by tensor."""
    from bnpass.importer.values import Const

    proto = numpy_helper.from_array(np.ones((64, 64), np.float32), "W")
    const = Const("W", proto, release=True)
    assert const.tensor.sum() == 4096
    assert not proto.raw_data
    kept = numpy_helper.from_array(np.ones((64, 64), np.float32), "W")
    assert Const("W", kept).tensor.sum() == 4096
    assert kept.raw_data
