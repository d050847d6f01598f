"""Import costs grow with the model, and weights are held once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from bnpass.errors import InputError  # noqa: E402
from bnpass.importer import to_torch, write_back  # noqa: E402
from tests import processes  # noqa: E402


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


PEAK = """
import sys
from bnpass.importer import to_torch

def megabytes(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key + ":")) / 1024

before = megabytes("VmRSS")
gm = to_torch(sys.argv[1])
print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
@pytest.mark.parametrize("external", [False, True])
def test_the_weights_of_a_file_are_in_memory_once(tmp_path: Path, external: bool) -> None:
    """While it is imported, too: 128 MB, and room for one of the eight weights."""
    nodes, weights = [], []
    for i in range(8):
        weights.append(numpy_helper.from_array(np.full((2048, 2048), i, np.float32), f"w{i}"))
        nodes.append(onnx.helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]))
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 2048])
        for n in ("h0", "h8")
    ]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=external, location="model.data")
    done = processes.run(
        [sys.executable, "-c", PEAK, path], check=True, capture_output=True, text=True
    )
    assert 120 < float(done.stdout) < 128 + 16 + 40
    for name, parameter in to_torch(path).named_parameters():
        assert bool((parameter == int(name[1:])).all())


def test_a_file_with_a_bad_place_of_weights_is_refused(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[N, 512] x) => (float[N, 512] y) { y = MatMul(x, W) }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((512, 512), np.float32), "W"))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.data")
    assert to_torch(path)(torch.ones(1, 512)).sum() == 512 * 512
    (tmp_path / "model.data").write_bytes(b"short")
    with pytest.raises(InputError, match=r"model\.data has 5 bytes"):
        to_torch(path)


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
