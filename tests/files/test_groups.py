"""Files that take their names together, and what is left when their writer is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bnpass.errors import OutputError
from bnpass.files import atomic_write, check_output, groups, replacing, save_model, together
from bnpass.files.leftovers import MAGIC, new_data_name, state


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_a_process(work: Callable[[], None]) -> int:
    """Run in a forked process, which may kill itself; returns its signal or exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def model(value: float = 1.0) -> onnx.ModelProto:
    found = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> n (float[N] x) => (float[N] y) {y = Add(x, w)}')
    found.graph.initializer.append(onnx.helper.make_tensor("w", 1, [600], [value] * 600))
    return found


def test_all_or_none(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "old a")
    with pytest.raises(ZeroDivisionError), together():  # noqa: PT012
        atomic_write(tmp_path / "a", "new a")
        atomic_write(tmp_path / "b", "new b")
        assert (tmp_path / "a").read_text() == "old a"
        raise ZeroDivisionError
    assert contents(tmp_path) == {"a": b"old a"}
    with together() as group:
        atomic_write(tmp_path / "a", "new a")
        atomic_write(tmp_path / "b", "new b")
        assert group.path_of(tmp_path / "a").read_text() == "new a"
    assert contents(tmp_path) == {"a": b"new a", "b": b"new b"}


@pytest.mark.parametrize("raised", [OSError("no"), KeyboardInterrupt()])
def test_a_refused_renaming_undoes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    atomic_write(tmp_path / "b", "old b")
    whole = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if target.name == "a":
            raise raised
        return whole(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises((OutputError, KeyboardInterrupt)), together():  # noqa: PT012
        for name in "abc":
            atomic_write(tmp_path / name, f"new {name}")
    assert contents(tmp_path) == {"b": b"old b"}


def test_a_file_given_up_in_a_group_is_no_part_of_it(tmp_path: Path) -> None:
    with together():
        with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a"):
            raise ZeroDivisionError
        atomic_write(tmp_path / "b", "b")
    assert contents(tmp_path) == {"b": b"b"}


def test_without_force_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    def write_too_late() -> None:
        with replacing(tmp_path / "a", force=False) as mine:
            mine.write_text("mine")
            (tmp_path / "a").write_text("theirs")

    with pytest.raises(OutputError, match="the output exists"):
        write_too_late()
    assert contents(tmp_path) == {"a": b"theirs"}


@needs_fork
def test_what_a_kill_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    def killed() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            die()

    (tmp_path / ".a.0123456789.tmp").write_text("not of our form")
    assert in_a_process(killed) == -signal.SIGKILL
    assert len(contents(tmp_path)) == 2
    check_output(tmp_path / "b")
    assert len(contents(tmp_path)) == 2
    check_output(tmp_path / "a")
    assert list(contents(tmp_path)) == [".a.0123456789.tmp"]


def test_the_files_of_a_writer_that_lives_stay(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("mine")
        check_output(tmp_path / "a")
        assert temporary.exists()
    assert contents(tmp_path) == {"a": b"mine"}


@needs_fork
def test_data_of_a_killed_writer_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = save_model(model(1.0), tmp_path / "o.onnx", external=True)
    before = contents(tmp_path)
    monkeypatch.setattr(groups.FileGroup, "commit", lambda _: die())
    killed = in_a_process(lambda: save_model(model(2.0), kept, external=True, force=True) and None)
    monkeypatch.undo()
    assert killed == -signal.SIGKILL
    assert len(contents(tmp_path)) == 5  # data, a temporary model, a journal
    check_output(kept, force=True)
    assert contents(tmp_path) == before


@needs_fork
def test_a_group_that_was_on_the_disk_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> None:
        with together():
            for name in ("o.onnx", "s.onnx"):
                atomic_write(tmp_path / name, f"new {name}")

    atomic_write(tmp_path / "o.onnx", "old")
    whole = Path.replace

    def replace(path: Path, target: Path) -> Path:
        whole(path, target)
        die()
        return target

    monkeypatch.setattr(Path, "replace", replace)
    assert in_a_process(killed) == -signal.SIGKILL
    monkeypatch.undo()
    assert (tmp_path / "o.onnx").read_text() == "old"
    check_output(tmp_path / "o.onnx", force=True)
    assert contents(tmp_path) == {"o.onnx": b"new o.onnx", "s.onnx": b"new s.onnx"}


def test_replaced_data_goes_unless_a_copy_of_the_model_names_it(tmp_path: Path) -> None:
    out = save_model(model(1.0), tmp_path / "o.onnx", external=True)
    save_model(model(2.0), out, external=True, force=True)
    assert len(contents(tmp_path)) == 2
    copy = tmp_path / "copy.bak"
    copy.write_bytes(out.read_bytes())
    save_model(model(3.0), out, external=True, force=True)
    assert len(contents(tmp_path)) == 4


def test_a_model_without_large_weights_gets_no_data_file(tmp_path: Path) -> None:
    small = model()
    del small.graph.initializer[0].float_data[:]
    small.graph.initializer[0].dims[:] = [1]
    small.graph.initializer[0].float_data.append(1.0)
    save_model(small, tmp_path / "o.onnx", external=True)
    assert list(contents(tmp_path)) == ["o.onnx"]


def test_a_strangers_journal_is_not_believed(tmp_path: Path) -> None:
    folder, other = tmp_path / "in", tmp_path / "other"
    folder.mkdir()
    other.write_text("mine")
    precious = folder / "precious"
    precious.write_text("mine")
    planted = folder / ".o.onnx.000000000000.tmp"
    planted.write_text("planted")
    lines = [["fresh", "../other"], ["fresh", "precious"], ["stale", "../other"],
             ["rename", [planted.name, "../other", state(other)]],
             ["rename", [planted.name, "precious", state(precious)]],
             ["rename", ["../other", "o.onnx", None]], ["rename", 3], "x", ["commit", True]]
    for count in range(len(lines) + 1):
        journal = folder / ".o.onnx.111111111111.tmp"
        journal.write_bytes(MAGIC + b"".join(json.dumps(x).encode() + b"\n"
                                             for x in [*lines[:count], ["commit", True]]))
        check_output(folder / "o.onnx")
        assert (other.read_text(), precious.read_text()) == ("mine", "mine")
        assert set(contents(folder)) == {"precious"}


def test_names_are_cut_to_what_a_file_system_takes(tmp_path: Path) -> None:
    name = "ä" * 120
    assert len(os.fsencode(new_data_name(tmp_path / "a").name)) < 60
    assert atomic_write(tmp_path / name, "text").read_text() == "text"
