"""Large files folded without their weights in memory give the same model as small ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnpass
from bnpass.deploy import DeployOptions, Proofs, deploy_file
from bnpass.errors import InputError, VerificationError
from bnpass.files import load_model
from bnpass.onnx_model.storage import detached
from tests.fuzz.generator import generate
from tests.helpers import Norm, build

TEXT = """(float[N,3,8,8] x) => (float[N,8,2,2] y) {
  c = Conv(x, w, b)
  d = BN(c, n)
  r = Relu(d)
  e = Conv <strides = [2,2]> (r, v)
  f = BN(e, m)
  g = Conv <strides = [2,2]> (r, v)
  h = Sigmoid(g)
  y = Mul(f, h)
}"""
WEIGHTS = {"w": (6, 3, 3, 3), "b": (6,), "v": (8, 6, 3, 3), "n": Norm(6), "m": Norm(8)}


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch):
    monkeypatch.setattr("bnpass.onnx_model.storage.detached.LARGE_FILE", 0)
    monkeypatch.setattr("bnpass.onnx_model.storage.detached._DETACHED_FROM", 100)
    monkeypatch.setattr("bnpass.ir.weights.LARGE", 1)
    monkeypatch.setattr("bnpass.onnx_model.storage.patching.APPEND_FROM", 50)


def in_memory(path, monkeypatch):
    """What the ordinary way makes of a file."""
    with monkeypatch.context() as patch:
        patch.setattr("bnpass.onnx_model.storage.detached.LARGE_FILE", 1 << 40)
        output = path.with_name("ordinary.onnx")
        deploy_file(path, output, DeployOptions(), force=True)
    return output.read_bytes()


def test_the_file_is_the_one_that_is_made_in_memory(tmp_path, monkeypatch):
    path, output = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    path.write_bytes(build(TEXT, WEIGHTS).SerializeToString())
    assert detached.detach(path) is not None
    bnpass.fold(path, output=output)
    assert output.read_bytes() == in_memory(path, monkeypatch)
    assert bnpass.verify(path, output).passed
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "folded.onnx", "model.onnx", "ordinary.onnx",
    ]  # fmt: skip


@pytest.mark.parametrize("group", range(4))
def test_random_graphs(tmp_path, monkeypatch, group):
    path, output = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    for seed in range(300 + 15 * group, 315 + 15 * group):
        path.write_bytes(generate(seed).SerializeToString())
        deploy_file(path, output, DeployOptions(), force=True)
        assert output.read_bytes() == in_memory(path, monkeypatch), seed


def test_reading_and_writing_alone_change_nothing(tmp_path):
    model = build(TEXT, WEIGHTS)
    model.doc_string, model.producer_name = "a model", "somebody"
    model.metadata_props.add(key="a", value="b")
    model.graph.doc_string = "a graph"
    for tensor in model.graph.initializer:
        tensor.doc_string = f"of {tensor.name}"
    path, copy = tmp_path / "model.onnx", tmp_path / "copy.onnx"
    path.write_bytes(model.SerializeToString())
    light = detached.detach(path)
    assert sum(len(t.raw_data) for t in light.graph.initializer) < 500
    copy.write_bytes(b"")
    detached.attach(light, copy, lambda t: detached.external.place(t, tmp_path))
    assert copy.read_bytes() == path.read_bytes()


def test_weights_that_are_no_raw_data_stay_in_the_model(tmp_path, monkeypatch):
    model = build(TEXT, WEIGHTS)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(array.reshape(-1).tolist())
    path, output = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    path.write_bytes(model.SerializeToString())
    bnpass.fold(path, output=output)
    assert output.read_bytes() == in_memory(path, monkeypatch)


def test_an_overflow_begins_anew(tmp_path, monkeypatch):
    model = build(TEXT, WEIGHTS)
    for tensor in model.graph.initializer:
        if tensor.name == "v":
            big = numpy_helper.to_array(tensor) * np.float32(1e37)
            tensor.CopyFrom(numpy_helper.from_array(big, "v"))
    path, output = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    path.write_bytes(model.SerializeToString())
    deploy_file(path, output, DeployOptions())
    assert output.read_bytes() == in_memory(path, monkeypatch)


def test_a_link_to_a_model_elsewhere(tmp_path):
    (tmp_path / "store").mkdir()
    path, link = tmp_path / "store" / "model.onnx", tmp_path / "link.onnx"
    path.write_bytes(build(TEXT, WEIGHTS).SerializeToString())
    link.symlink_to(path)
    bnpass.fold(link, output=tmp_path / "folded.onnx")
    assert bnpass.verify(path, tmp_path / "folded.onnx").passed


def test_nothing_is_left_when_the_check_fails(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(build(TEXT, WEIGHTS).SerializeToString())

    def refuse(*_: object) -> None:
        raise VerificationError("they differ")

    with pytest.raises(VerificationError):
        deploy_file(path, tmp_path / "folded.onnx", DeployOptions(), Proofs(refuse, refuse))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("keep", [10, 1000, 2600, -1])
def test_a_file_that_is_cut_off_is_an_input_error(tmp_path, keep):
    path = tmp_path / "model.onnx"
    path.write_bytes(build(TEXT, WEIGHTS).SerializeToString()[:keep])
    with pytest.raises(InputError):
        deploy_file(path, tmp_path / "folded.onnx", DeployOptions())
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_numbers_that_do_not_fit_their_shape_are_an_input_error(tmp_path):
    model = build(TEXT, WEIGHTS)
    weight = next(t for t in model.graph.initializer if t.name == "w")
    weight.raw_data = weight.raw_data[:-4]
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises((InputError, ValueError)):
        deploy_file(path, tmp_path / "folded.onnx", DeployOptions())


def test_what_outgrows_one_file_is_saved_with_external_data(tmp_path, monkeypatch):
    path, output = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    path.write_bytes(build(TEXT, WEIGHTS).SerializeToString())
    monkeypatch.setattr("bnpass.onnx_model.storage.detached.PROTOBUF_LIMIT", path.stat().st_size)
    monkeypatch.setattr("bnpass.onnx_model.storage.detached._length", lambda chunks: 1 << 40)
    bnpass.fold(path, output=output)
    assert bnpass.verify(path, output).passed
    assert load_model(output).graph.node


def test_small_files_and_other_files_are_read_in_the_ordinary_way(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model at all")
    assert detached.detach(path) is None
    model = onnx.ModelProto(ir_version=8)
    path.write_bytes(model.SerializeToString())
    assert detached.detach(path) is None
    path.write_bytes(build(TEXT, WEIGHTS).SerializeToString())
    monkeypatch.setattr("bnpass.onnx_model.storage.detached.LARGE_FILE", 1 << 20)
    assert detached.detach(path) is None
