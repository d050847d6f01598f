"""External data: where it may lie, what may take its place, how much of it is copied."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnpass as package
from bnpass.errors import InputError
from bnpass.files import load_model
from bnpass.limits import BudgetError
from bnpass.onnx_model.storage import external
from tests.commands.helpers import Run, add_norm, files, mlp


def saved(folder: Path, name: str = "m.onnx", data: str = "m.data") -> Path:
    folder.mkdir(exist_ok=True)
    onnx.save(add_norm(mlp()), str(folder / name), save_as_external_data=True, location=data,
              size_threshold=0)
    return folder / name


def same(first: Path, second: Path) -> bool:
    return load_model(first).graph.initializer[0] == load_model(second).graph.initializer[0]


def test_a_hard_link_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    os.link(tmp_path / "m.data", tmp_path / "again")
    with pytest.raises(InputError, match="hard link"):
        load_model(path)


def test_the_model_is_not_its_own_data(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        external.point(tensor, "m.onnx", 0, external.nbytes(tensor) or 0)
    path.write_bytes(model.SerializeToString() + bytes(0))
    with pytest.raises(InputError, match="the model itself"):
        load_model(path)


def by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def by_hard_link(path: Path) -> None:
    os.link(path, path.with_name("elsewhere"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("swap", [by_link, by_pipe, by_hard_link])
def test_a_file_that_is_swapped_after_the_check_is_refused(
    tmp_path: Path, swap: Callable[[Path], None]
) -> None:
    path = saved(tmp_path)
    proto = load_model(path, data=False)
    places = external.places(proto, tmp_path)
    swap(tmp_path / "m.data")
    with pytest.raises(OSError, match=r"m\.data"):
        external.opened(places[0].path)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="no links here")
def test_a_folder_that_is_swapped_after_the_check_is_refused(tmp_path: Path) -> None:
    folder, secret = tmp_path / "in" / "deep" / "er", tmp_path / "secret"
    (secret / "er").mkdir(parents=True)
    folder.mkdir(parents=True)
    (secret / "er" / "m.data").write_bytes(bytes(1 << 16))
    path = saved(tmp_path / "in", data="deep/er/m.data")
    proto = load_model(path, data=False)
    where = external.places(proto, tmp_path / "in")[0]
    assert external.read(where).nbytes == where.length
    (tmp_path / "in" / "deep").rename(tmp_path / "in" / "was")
    (tmp_path / "in" / "deep").symlink_to(secret)
    with pytest.raises(OSError, match="deep"):
        external.read(where)


def test_data_in_a_folder_that_is_a_link_inside_of_the_models(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = saved(tmp_path, data="real/m.data")
    (tmp_path / "real").rename(tmp_path / "other")
    (tmp_path / "real").symlink_to("other")
    assert load_model(path).graph.initializer[0].raw_data


def written_over(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(8))
    os.utime(path, ns=(1, 1))


def cut_short(path: Path) -> None:
    os.truncate(path, 100)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [written_over, cut_short, replaced, gone])
@pytest.mark.parametrize("command", [
    ("fold", "--no-verify"), ("insert",), ("insert", "--dry-run", "--explain")],
    ids=" ".join)
def test_data_that_changes_while_it_is_read(
    bnpass: Run, tmp_path: Path, change: Callable[[Path], None], command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the first reading of numbers: the command refuses, or it had read all it needs."""
    path, done = saved(tmp_path), list[Path]()
    before, opened = files(tmp_path), external.opened

    def late(data: Path) -> Any:
        if not done:
            done.append(data)
            file = opened(data)
            change(data)
            return file
        return opened(data)

    monkeypatch.setattr(external, "opened", late)
    made = [] if "--dry-run" in command else ["-o", tmp_path / "o.onnx"]
    result = bnpass(command[0], path, *made, *command[1:])
    left = set(files(tmp_path)) - set(before) - {"other"}
    if done and made:
        result.assert_refused(2, "m.data")
    assert result.code in {0, 2}
    assert "internal" not in result.err
    assert not left


@pytest.mark.parametrize("change", [written_over, cut_short, replaced, gone])
def test_a_model_that_changes_while_it_is_read(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(add_norm(mlp()), path)
    read = Path.read_bytes

    def late(file: Path) -> bytes:
        content = read(file)
        if file == path:
            monkeypatch.setattr(Path, "read_bytes", read)
            change(file)
        return content

    monkeypatch.setattr(Path, "read_bytes", late)
    with pytest.raises(InputError, match=r"changed while it was read.*m\.onnx"):
        load_model(path)


def test_a_model_by_a_link_into_another_folder(bnpass: Run, tmp_path: Path) -> None:
    original = saved(tmp_path / "store")
    (tmp_path / "m.onnx").symlink_to("store/m.onnx")
    assert same(tmp_path / "m.onnx", original)
    assert bnpass("fold", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx").code == 0


def test_model_and_data_by_links_into_a_cache(bnpass: Run, tmp_path: Path) -> None:
    """The layout of Hugging Face's cache: both are links to files that are named by their hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "a1"
    original = saved(blobs, "0123abcd", "model.onnx_data")
    (blobs / "model.onnx_data").rename(blobs / "4567cdef")
    snapshot.mkdir(parents=True)
    (snapshot / "model.onnx").symlink_to("../../blobs/0123abcd")
    (snapshot / "model.onnx_data").symlink_to("../../blobs/4567cdef")
    done = bnpass("fold", snapshot / "model.onnx", "-o", tmp_path / "o.onnx")
    assert done.code == 0, done.err
    assert files(blobs) == ["0123abcd", "4567cdef"]
    assert original.exists()


def test_a_link_of_the_data_alone_may_not_leave(tmp_path: Path) -> None:
    """Nor if a link beside it leads to where the data is: it is not the model that is read."""
    path = saved(tmp_path / "in")
    secret = tmp_path / "secret"
    secret.mkdir()
    (tmp_path / "in" / "m.data").rename(secret / "m.data")
    (tmp_path / "in" / "m.data").symlink_to(secret / "m.data")
    saved(secret, "other.onnx", "other.data")
    (tmp_path / "in" / "other.onnx").symlink_to(secret / "other.onnx")
    load_model(tmp_path / "in" / "other.onnx")
    with pytest.raises(InputError, match="through a link"):
        load_model(path)


def test_what_no_tensor_uses_is_not_copied_by_the_terabyte(tmp_path: Path) -> None:
    path = saved(tmp_path)
    os.truncate(tmp_path / "m.data", 1 << 40)
    out = package.fold(path, output=tmp_path / "o.onnx", verify=False)
    new = [p for p in tmp_path.iterdir() if p.name.startswith("o.onnx.")]
    assert sum(p.stat().st_size for p in new) < 1 << 20
    assert np.isfinite(onnx.numpy_helper.to_array(load_model(out).graph.initializer[0])).all()


def test_a_tensor_a_terabyte_behind_the_others_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    external.point(tensor, "m.data", (1 << 40) - 4096, external.nbytes(tensor) or 0)
    path.write_bytes(model.SerializeToString())
    os.truncate(tmp_path / "m.data", 1 << 40)
    before = files(tmp_path)
    with pytest.raises(BudgetError, match=r"m\.data"):
        package.fold(path, output=tmp_path / "o.onnx", verify=False)
    assert files(tmp_path) == before
