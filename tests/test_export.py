"""torch -> ONNX: what is written is what torch computes, and nothing is written otherwise."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnpass
from bnpass.errors import (
    MissingDependencyError,
    OutputError,
    UnsupportedError,
    VerificationError,
)
from bnpass.runtime.session import session


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = torch.relu(self.conv(x)).mean((2, 3))
        return self.fc(self.drop(x))


X = (torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    made = bnpass.insert(Net(), X)
    return bnpass.calibrate(made, [torch.randn(16, 1, 8, 8)])


def test_training_graph_keeps_its_norms_and_any_batch_runs(trained, tmp_path):
    path = bnpass.export(trained.train(), X, tmp_path / "model.onnx")
    assert trained.training and kinds(path).count("BatchNormalization") == 1
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    got = session(path).run(None, {session(path).get_inputs()[0].name: x})[0]
    with torch.no_grad():
        want = trained.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]


def test_exported_training_graph_continues_as_onnx(trained, tmp_path):
    path = bnpass.export(trained, X, tmp_path / "model.onnx", input_names=["image"])
    folded = bnpass.fold(path)
    assert "BatchNormalization" not in [n.op_type for n in folded.graph.node]
    assert folded.graph.input[0].name == "image"


def test_deployed_graph_and_a_fixed_batch(trained, tmp_path):
    deploy = bnpass.fold(trained.eval())
    path = bnpass.export(deploy, X, tmp_path / "deploy.onnx", dynamic_batch=False)
    assert "BatchNormalization" not in kinds(path)
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [1, 1, 8, 8]


def test_existing_file_is_refused_and_replaced_with_force(trained, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError):
        bnpass.export(trained, X, path)
    assert path.read_bytes() == b"mine"
    bnpass.export(trained, X, path, force=True, verify=False)
    assert len(path.read_bytes()) > 100


def test_a_wrong_model_is_not_written(trained, tmp_path, monkeypatch):
    home = sys.modules["bnpass.export"]
    real = home._to_onnx

    def wrong(*args):
        proto = real(*args)
        for tensor in proto.graph.initializer:
            if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(tensor) + 0.5
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return proto

    monkeypatch.setattr(home, "_to_onnx", wrong)
    with pytest.raises(VerificationError):
        bnpass.export(trained, X, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_exporter(trained, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "onnxscript" else find(n, *a)
    )
    with pytest.raises(MissingDependencyError, match="pip install onnxscript"):
        bnpass.export(trained, X, tmp_path / "model.onnx")


def test_what_the_exporter_cannot_translate(tmp_path):
    class Bad(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match="exporter"):
        bnpass.export(Bad(), X, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_no_trace_of_the_exporting_machine_and_no_made_up_bias(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    path = tmp_path / "net.onnx"
    bnpass.export(module, (torch.randn(2, 3, 8, 8),), path)
    assert b"stack_trace" not in path.read_bytes()
    convs = [n for n in onnx.load(path).graph.node if n.op_type == "Conv"]
    assert [len(n.input) for n in convs] == [2, 3]
