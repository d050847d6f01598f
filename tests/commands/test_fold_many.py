"""bnpass fold of many files, and fold --check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from tests.commands.helpers import Run, add_norm, files, mlp, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models with a BatchNorm, one without, and one that is no model."""
    inside = tmp_path / "models"
    (inside / "deep").mkdir(parents=True)
    write(add_norm(mlp()), inside / "a.onnx")
    write(mlp(), inside / "b.onnx")
    write(add_norm(mlp(seed=3)), inside / "deep" / "c.onnx")
    (inside / "z.onnx").write_bytes(b"no model")
    return inside


def norms(path: Path) -> int:
    return sum(n.op_type == "BatchNormalization" for n in onnx.load(path).graph.node)


def test_a_bad_file_stops_no_other_one(bnpass: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = bnpass("fold", folder, "-o", out, "--jobs", 2)
    assert result.code == 1
    assert files(out) == ["a.onnx", "b.onnx", "deep/c.onnx"]
    assert norms(out / "a.onnx") == norms(out / "deep" / "c.onnx") == 0
    assert f"2/4 {folder / 'b.onnx'}: nothing to fold" in result.err
    assert f"{folder / 'z.onnx'}: not an ONNX model" in result.out
    assert [result.out.count(word) for word in ("PASSED", "FAILED")] == [2, 1]
    assert result.out.splitlines()[-1] == f"3 files done, in {out}, 1 failed"


def test_one_json_line_a_file_and_options_are_handed_on(
    bnpass: Run, folder: Path, tmp_path: Path
) -> None:
    (folder / "z.onnx").unlink()
    result = bnpass("fold", folder / "a.onnx", folder / "deep" / "c.onnx", "--skip=bn", "-o",
                    tmp_path / "out", "--json")  # fmt: skip
    assert result.code == 0, result.err
    documents = [json.loads(line) for line in result.out.splitlines()]
    assert [Path(d["model"]).name for d in documents] == ["a.onnx", "c.onnx"]
    assert [(d["folded"], d["exit_code"]) for d in documents] == [(0, 0), (0, 0)]
    assert norms(tmp_path / "out" / "a.onnx") == 1


def test_outputs_in_the_folder_of_the_models_are_not_folded_again(
    bnpass: Run, folder: Path
) -> None:
    (folder / "z.onnx").unlink()
    assert bnpass("fold", folder, "-o", folder / "out").code == 0
    assert bnpass("fold", folder, "-o", folder / "out", "--force").code == 0
    assert files(folder / "out") == ["a.onnx", "b.onnx", "deep/c.onnx"]


def test_what_cannot_be_meant_is_refused(bnpass: Run, folder: Path, tmp_path: Path) -> None:
    bnpass("fold", folder).assert_refused(2, "no output folder", "-o FOLDER")
    shutil.copytree(folder, tmp_path / "again")
    bnpass("fold", folder, tmp_path / "again", "-o", tmp_path / "out").assert_refused(
        2, "two files would be written to")
    (tmp_path / "empty").mkdir()
    bnpass("fold", tmp_path / "empty", "--check").assert_refused(2, "no .onnx file in")
    bnpass("fold", folder, "-o", tmp_path / "out", "--sidecar", tmp_path / "s").assert_refused(
        2, "--sidecar with several files")


def test_check_is_1_if_anything_would_fold(bnpass: Run, folder: Path, tmp_path: Path) -> None:
    before = files(tmp_path)
    found = bnpass("fold", folder / "a.onnx", "--check")
    assert found.code == 1
    assert "1 of 1 maps would fold: 1 of 1 BatchNorm" in found.out
    assert "next: bnpass fold" in found.out.splitlines()[-1]
    clean = bnpass("fold", folder / "b.onnx", "--check")
    assert clean.code == 0 and clean.out.startswith("nothing would fold: ")
    assert bnpass("fold", folder / "a.onnx", "--check", "--json").document["ok"] is False
    assert bnpass("fold", folder / "a.onnx", folder / "b.onnx", "--check").code == 1
    assert bnpass("fold", folder / "b.onnx", folder / "b.onnx", "--check").code == 0
    assert files(tmp_path) == before
    bnpass("fold", folder / "a.onnx", "--check", "-o", "x").assert_refused(2, "--check with -o")
