"""Model files: read safely, written in one step."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnpass import files
from bnpass.errors import InputError, OutputError
from bnpass.files import atomic_write, check_output, load_model, replacing, save_model, saving


def small_model(value: float = 1.0, size: int = 600) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["" : 17], producer_name: "test">
        net (float[N, {size}] x) => (float[N, {size}] y) {{ y = Add(x, w) }}
        """
    )
    weight = np.full((size,), value, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model.metadata_props.add(key="author", value="somebody")
    return model


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(small_model().SerializeToString())
    return path


def with_external(tmp_path: Path, **fields: str) -> Path:
    """A model whose weight lies in a file, described by the given external_data fields."""
    model = small_model()
    tensor = model.graph.initializer[0]
    (tmp_path / "w.data").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "w.data", **fields}.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def weight_of(path: Path) -> np.ndarray:
    return onnx.numpy_helper.to_array(load_model(path).graph.initializer[0])


# -- reading ---------------------------------------------------------------------------------------


def test_a_model_proto_is_returned_as_it_is() -> None:
    model = small_model()
    assert load_model(model) is model


def test_a_missing_file_names_the_near_one(model_file: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        load_model(model_file.with_name("nett.onnx"))
    assert "did you mean 'net.onnx'" in caught.value.hint


def test_a_folder_names_the_model_in_it(model_file: Path) -> None:
    with pytest.raises(InputError, match="folder") as caught:
        load_model(model_file.parent)
    assert "net.onnx" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "empty"),
        (b"hello, this is no model\n" * 20, "exporter"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "PyTorch"),
        (os.urandom(64) + bytes(64), "exporter"),
    ],
)
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX model") as caught:
        load_model(path)
    assert hint in caught.value.hint


def test_a_cut_off_model_is_refused(model_file: Path) -> None:
    model_file.write_bytes(model_file.read_bytes()[:-50])
    with pytest.raises(InputError, match="not an ONNX model"):
        load_model(model_file)


def test_a_model_without_opset_is_refused(model_file: Path) -> None:
    model = small_model()
    del model.opset_import[:]
    model_file.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="opset"):
        load_model(model_file)


def test_a_file_beyond_2_gib_hints_at_external_data(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 10)  # sparse: takes no room
    with pytest.raises(InputError, match="2 GiB") as caught:
        load_model(path)
    assert "external data" in caught.value.hint


def test_external_data_is_read(tmp_path: Path) -> None:
    path = with_external(tmp_path)
    assert (weight_of(path) == 1).all()
    assert not load_model(path).graph.initializer[0].external_data


def test_external_data_is_left_outside_on_request(tmp_path: Path) -> None:
    path = with_external(tmp_path, offset="0", length="2400")
    model = load_model(path, data=False)
    assert model.SerializeToString() == path.read_bytes()
    assert files.data_files(path) == [tmp_path / "w.data"]


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("location", ["/etc/hostname", "../w.data", "a/../../w.data", "C:\\w", ""])
def test_external_data_may_not_leave_the_folder(tmp_path: Path, location: str, data: bool) -> None:
    (tmp_path / "w.data").write_bytes(bytes(2400))
    inner = tmp_path / "inner"
    inner.mkdir()
    path = with_external(inner, location=location)
    with pytest.raises(InputError, match="outside of the model's folder"):
        load_model(path, data=data)


@pytest.mark.parametrize("data", [True, False])
def test_external_data_may_not_leave_through_a_link(tmp_path: Path, data: bool) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret").write_bytes(bytes(2400))
    path = with_external(inner)
    (inner / "w.data").unlink()
    (inner / "w.data").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="through a link"):
        load_model(path, data=data)


def test_external_data_may_not_leave_through_a_linked_folder(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "w.data").write_bytes(bytes(2400))
    (inner / "up").symlink_to(tmp_path)
    with pytest.raises(InputError, match="through a link"):
        load_model(with_external(inner, location="up/w.data"))


def test_external_data_in_a_nested_graph_is_checked(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (bool c, float[2] x) => (float[2] y) {
          y = If(c) <then_branch = g1 () => (float[2] a) { a = Identity(x) },
                     else_branch = g2 () => (float[2] b) <float[2] k = {1, 2}> { b = Add(x, k) }>
        }
        """
    )
    body = next(a.g for a in model.graph.node[0].attribute if a.g.initializer)
    body.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    body.initializer[0].external_data.add(key="location", value="/etc/hostname")
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="outside"):
        load_model(path)


@pytest.mark.parametrize(
    "fields",
    [{"length": "9999"}, {"offset": "2000"}, {"offset": "-8"}, {"length": "8"}, {"offset": "x"}],
)
def test_external_data_of_the_wrong_size_is_refused(
    tmp_path: Path, fields: dict[str, str]
) -> None:
    with pytest.raises(InputError, match="'w' cannot be read"):
        load_model(with_external(tmp_path, **fields))


def test_missing_external_data_names_the_file(tmp_path: Path) -> None:
    path = with_external(tmp_path)
    (tmp_path / "w.data").unlink()
    with pytest.raises(InputError, match=r"not found: .*w\.data"):
        load_model(path)


# -- writing ---------------------------------------------------------------------------------------


def test_an_untouched_model_keeps_its_bytes(model_file: Path, tmp_path: Path) -> None:
    out = save_model(load_model(model_file), tmp_path / "copy.onnx", source=model_file)
    assert out.read_bytes() == model_file.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.onnx", "net.onnx"]


def test_an_existing_output_needs_force(model_file: Path) -> None:
    before = model_file.read_bytes()
    with pytest.raises(OutputError, match="exists") as caught:
        save_model(small_model(2.0), model_file)
    assert "--force" in caught.value.hint
    assert model_file.read_bytes() == before
    save_model(small_model(2.0), model_file, force=True)
    assert (weight_of(model_file) == 2).all()


@pytest.mark.parametrize("kind", ["same", "symlink", "hardlink", "relative"])
def test_the_input_is_never_the_output(model_file: Path, kind: str) -> None:
    out = model_file.with_name("out.onnx")
    if kind == "symlink":
        out.symlink_to(model_file)
    elif kind == "hardlink":
        out.hardlink_to(model_file)
    else:
        out = model_file if kind == "same" else model_file.parent / "." / "net.onnx"
    with pytest.raises(OutputError, match="the output is the input"):
        check_output(out, force=True, source=model_file)


def test_the_inputs_data_file_is_never_the_output(tmp_path: Path) -> None:
    path = with_external(tmp_path)
    with pytest.raises(OutputError, match="input's data file"):
        check_output(tmp_path / "w.data", force=True, source=path)


def test_one_of_several_inputs_is_never_the_output(model_file: Path, tmp_path: Path) -> None:
    other = shutil.copy(model_file, tmp_path / "other.onnx")
    with pytest.raises(OutputError, match="the output is the input"):
        check_output(other, force=True, source=[model_file, other])


def test_folders_and_devices_are_no_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, force=True)
    with pytest.raises(OutputError, match="does not exist") as caught:
        check_output(tmp_path / "no" / "net.onnx")
    assert caught.value.hint == f"mkdir -p {tmp_path / 'no'}"
    with pytest.raises(OutputError, match="no regular file"):
        check_output("/dev/null", force=True)


def test_a_read_only_folder_is_refused() -> None:
    """Also as root, who may write anywhere: the test then steps down to another user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(OutputError, match="cannot be written"):
            check_output(folder / "net.onnx")
        with pytest.raises(OutputError, match="cannot be written"), replacing(folder / "x"):
            pass
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        folder.rmdir()


def test_a_failure_midway_leaves_the_old_file_whole(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model_file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_model(small_model(2.0), model_file, force=True)
    assert model_file.read_bytes() == before
    assert list(model_file.parent.iterdir()) == [model_file]


def test_an_interrupt_midway_leaves_the_old_file_whole(model_file: Path) -> None:
    before = model_file.read_bytes()
    with pytest.raises(KeyboardInterrupt), replacing(model_file) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert model_file.read_bytes() == before
    assert list(model_file.parent.iterdir()) == [model_file]


def test_a_link_is_followed_and_permissions_are_kept(model_file: Path, tmp_path: Path) -> None:
    model_file.chmod(0o640)
    link = tmp_path / "link.onnx"
    link.symlink_to(model_file)
    save_model(small_model(3.0), link, force=True)
    assert link.is_symlink()
    assert (weight_of(model_file) == 3).all()
    assert model_file.stat().st_mode & 0o777 == 0o640


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        assert atomic_write(tmp_path / "a.txt", "x").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


def test_atomic_write_takes_text_and_bytes(tmp_path: Path) -> None:
    assert atomic_write(tmp_path / "a", "µ").read_bytes() == "µ".encode()
    assert atomic_write(tmp_path / "a", b"\x00").read_bytes() == b"\x00"
    with pytest.raises(OutputError, match="exists"):
        atomic_write(tmp_path / "a", "b", force=False)


# -- external data, written ------------------------------------------------------------------------


def two_tensors() -> onnx.ModelProto:
    model = small_model(2.0)
    model.graph.initializer[0].doc_string = "the weight"
    as_floats = onnx.helper.make_tensor("f", onnx.TensorProto.FLOAT, [300], [0.5] * 300)
    tiny = onnx.numpy_helper.from_array(np.arange(3), "tiny")
    model.graph.initializer.extend([as_floats, tiny])
    return model


def test_external_data_goes_beside_the_model(tmp_path: Path) -> None:
    model = two_tensors()
    before = model.SerializeToString()
    out = save_model(model, tmp_path / "out.onnx", external=True)
    assert model.SerializeToString() == before
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 2
    assert names[1].startswith("out.onnx.")
    assert names[1].endswith(".data")
    loaded = load_model(out)
    for old, new in zip(model.graph.initializer, loaded.graph.initializer, strict=True):
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(old), onnx.numpy_helper.to_array(new)
        )
        assert old.doc_string == new.doc_string
    onnx.checker.check_model(str(out), full_check=True)
    assert loaded.metadata_props == model.metadata_props


def test_external_data_of_an_earlier_output_stays_whole(tmp_path: Path) -> None:
    out = save_model(small_model(1.0), tmp_path / "out.onnx", external=True)
    kept = shutil.copy(out, tmp_path / "kept.onnx")
    save_model(small_model(2.0), out, external=True, force=True)
    assert (weight_of(Path(kept)) == 1).all()
    assert (weight_of(out) == 2).all()


def test_a_failed_model_leaves_no_data_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: onnx.ModelProto, path: Path) -> bytes:
        raise OutputError("provoked")

    out = save_model(small_model(1.0), tmp_path / "out.onnx", external=True)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(saving, "_serialize", fail)
    with pytest.raises(OutputError, match="provoked"):
        save_model(small_model(2.0), out, external=True, force=True)
    assert sorted(tmp_path.iterdir()) == before
    assert (weight_of(out) == 1).all()


def test_too_large_for_one_file_becomes_external_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "PROTOBUF_LIMIT", 2000 + saving._MARGIN)
    out = save_model(small_model(), tmp_path / "out.onnx")
    assert len(files.data_files(out)) == 1
    monkeypatch.undo()
    assert (weight_of(out) == 1).all()


def test_a_model_that_is_external_already_needs_its_data_there(tmp_path: Path) -> None:
    model = load_model(with_external(tmp_path), data=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(InputError, match="not found"):
        save_model(model, elsewhere / "out.onnx")
    assert (weight_of(save_model(model, tmp_path / "out.onnx")) == 1).all()


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "BOOL"])
def test_every_element_type_survives_external_data(tmp_path: Path, kind: str) -> None:
    model = small_model()
    data_type = onnx.TensorProto.DataType.Value(kind)
    values = np.arange(3000) % 2
    tensor = onnx.helper.make_tensor("t", data_type, [3, 1000], values)
    model.graph.initializer.append(tensor)
    out = save_model(model, tmp_path / "out.onnx", external=True)
    assert len(load_model(out, data=False).graph.initializer[1].external_data) == 3
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(load_model(out).graph.initializer[1]).astype(np.float32),
        values.reshape(3, 1000).astype(np.float32),
    )
