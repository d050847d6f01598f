"""Folding files with external data: copied by the kernel, patched where weights change."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnpass
from bnpass.deploy import DeployOptions, Proofs, deploy_file
from bnpass.errors import VerificationError
from bnpass.onnx_model.storage import external

CHANNELS = 24


def shared_conv_model(shared: bool) -> onnx.ModelProto:
    """Two convolutions with a BatchNorm each, on one weight or on two."""
    rng = np.random.default_rng(0)
    arrays = {"w0": rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 15}
    if not shared:
        arrays["w1"] = rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 15
    for i in (0, 1):
        arrays |= {f"{k}{i}": rng.normal(size=CHANNELS) for k in "gbm"}
        arrays[f"v{i}"] = rng.uniform(0.5, 2, CHANNELS)
    nodes, value = [], "x"
    for i in (0, 1):
        weight = "w0" if shared else f"w{i}"
        norm = [f"c{i}", *(f"{k}{i}" for k in "gbmv")]
        nodes += [
            helper.make_node("Conv", [value, weight], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", norm, [f"n{i}"], f"bn{i}"),
            helper.make_node("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"),
        ]
        value = f"r{i}"
    shape = ["N", CHANNELS, 6, 6]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info(value, 1, shape)],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def saved(tmp_path: Path):
    def save(shared: bool = False) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save_model(
            shared_conv_model(shared),
            path,
            save_as_external_data=True,
            location="weights/model.data",
            size_threshold=0,
        )
        return path

    (tmp_path / "weights").mkdir()
    return save


def data_of(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.glob("*.data"))


@pytest.mark.parametrize("shared", [False, True])
def test_weights_change_in_a_new_data_file_and_nothing_else_does(saved, tmp_path, shared):
    path = saved(shared)
    before = {p.name: p.read_bytes() for p in (path, tmp_path / "weights" / "model.data")}
    output = tmp_path / "folded.onnx"
    assert bnpass.fold(path, output=output) == output
    assert {p.name: p.read_bytes() for p in (path, tmp_path / "weights" / "model.data")} == before
    folded = onnx.load(output, load_external_data=False)
    assert [n.op_type for n in folded.graph.node] == ["Conv", "Relu"] * 2
    assert any(external.is_external(t) for t in folded.graph.initializer)
    assert len(data_of(output)) == 1
    assert bnpass.verify(path, output).passed


def test_pieces_give_the_same_bytes_as_the_whole(saved, tmp_path, monkeypatch):
    path, whole, pieces = saved(), tmp_path / "whole.onnx", tmp_path / "pieces.onnx"
    bnpass.fold(path, output=whole)
    monkeypatch.setattr("bnpass.ir.weights.LARGE", 1)
    monkeypatch.setattr("bnpass.ir.scaled._PIECE", 300)
    bnpass.fold(path, output=pieces)
    one, other = onnx.load(whole), onnx.load(pieces)
    assert [t.raw_data for t in one.graph.initializer] == [
        t.raw_data for t in other.graph.initializer
    ]


@pytest.mark.parametrize("large", [1, 1 << 30])
@pytest.mark.parametrize("overlap", ["whole", "part"])
def test_bytes_that_two_tensors_share_stay_for_the_other(tmp_path, monkeypatch, overlap, large):
    monkeypatch.setattr("bnpass.ir.weights.LARGE", large)
    path, output = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    onnx.save_model(
        shared_conv_model(False), path, save_as_external_data=True, location="model.data",
        size_threshold=0,
    )  # fmt: skip
    model = onnx.load(path, load_external_data=False)
    fields = {
        t.name: {e.key: e for e in t.external_data}
        for t in model.graph.initializer
        if t.name in ("w0", "w1")
    }
    step = 0 if overlap == "whole" else 4 * CHANNELS
    first = int(fields["w0"]["offset"].value)
    fields["w1"]["offset"].value = str(first + step)
    path.write_bytes(model.SerializeToString())
    bnpass.fold(path, output=output)
    assert [n.op_type for n in onnx.load(output).graph.node] == ["Conv", "Relu"] * 2
    assert bnpass.verify(path, output).passed


def test_what_no_tensor_of_the_model_holds_is_copied_too(saved, tmp_path):
    path, output = saved(), tmp_path / "folded.onnx"
    data = tmp_path / "weights" / "model.data"
    data.write_bytes(data.read_bytes() + b"notes of somebody" * 1000)
    bnpass.fold(path, output=output)
    (copy,) = data_of(output)
    assert (tmp_path / copy).read_bytes().endswith(b"notes of somebody" * 1000)


def test_an_older_result_goes_with_its_data_when_it_is_replaced(saved, tmp_path):
    path, output = saved(), tmp_path / "folded.onnx"
    bnpass.fold(path, output=output)
    first = data_of(output)
    bnpass.fold(path, output=output, force=True)
    assert len(data_of(output)) == 1
    assert data_of(output) != first
    assert bnpass.verify(path, output).passed


def test_nothing_is_left_when_the_check_fails(saved, tmp_path):
    path, output = saved(), tmp_path / "folded.onnx"
    before = sorted(p.name for p in tmp_path.iterdir())

    def refuse(*_: object) -> None:
        raise VerificationError("they differ")

    with pytest.raises(VerificationError):
        deploy_file(path, output, DeployOptions(), Proofs(refuse, refuse))
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_overflow_is_undone_in_the_data_file(tmp_path):
    model = shared_conv_model(False)
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            big = numpy_helper.to_array(tensor) * np.float32(1e37)
            tensor.CopyFrom(numpy_helper.from_array(big, "w1"))
        if tensor.name in ("g1", "v1"):
            value = 1e3 if tensor.name == "g1" else 1e-4
            new = np.full(CHANNELS, value, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    path, output = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    onnx.save_model(
        model, path, save_as_external_data=True, location="model.data", size_threshold=0
    )
    bnpass.fold(path, output=output, verify=False)
    folded = onnx.load(output)
    assert [n.op_type for n in folded.graph.node].count("BatchNormalization") == 1
    kept = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    assert np.array_equal(kept["w1"], original["w1"])
    assert not np.array_equal(kept["w0"], original["w0"])


def test_a_tensor_without_a_length_in_a_data_file_that_grows(saved, tmp_path, monkeypatch):
    """It goes on to the end of the file, where the clone of a shared weight comes."""
    monkeypatch.setattr("bnpass.frontends.onnx.editor.APPEND_FROM", 1)
    path, output = saved(shared=True), tmp_path / "folded.onnx"
    model = onnx.load(path, load_external_data=False)
    last = max(model.graph.initializer, key=lambda t: int(t.external_data[1].value))
    fields = {e.key: e.value for e in last.external_data}
    del last.external_data[:]
    for key in ("location", "offset"):
        last.external_data.add(key=key, value=fields[key])
    model.graph.output.add().CopyFrom(
        helper.make_tensor_value_info(last.name, last.data_type, list(last.dims))
    )
    path.write_bytes(model.SerializeToString())
    bnpass.fold(path, output=output)
    kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    assert np.array_equal(kept[last.name], original[last.name])
    assert bnpass.verify(path, output).passed


def test_one_data_file_under_two_names(saved, tmp_path):
    path, output = saved(), tmp_path / "folded.onnx"
    (tmp_path / "weights" / "link.data").symlink_to("model.data")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            tensor.external_data[0].value = "weights/link.data"
    path.write_bytes(model.SerializeToString())
    deploy_file(path, output, DeployOptions())
    folded, whole = onnx.load(output), bnpass.fold(shared_conv_model(False), verify=False)
    assert folded.graph.node == whole.graph.node
    for one, other in zip(folded.graph.initializer, whole.graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other)), one.name
