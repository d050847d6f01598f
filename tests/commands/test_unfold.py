"""bnpass fold --sidecar and bnpass unfold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.helpers import Run, files


@pytest.fixture
def folded(bnpass: Run, normed: Path, tmp_path: Path) -> Path:
    out = tmp_path / "folded.onnx"
    result = bnpass("fold", normed, "-o", out, "--sidecar", tmp_path / "folded.undo")
    assert result.code == 0, result.err
    assert "bnpass unfold" in result.out
    return out


def test_the_original_is_back_to_the_byte(
    bnpass: Run, folded: Path, normed: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.onnx"
    result = bnpass("unfold", folded, tmp_path / "folded.undo", "-o", again, "--json")
    assert result.code == 0, result.err
    assert again.read_bytes() == normed.read_bytes()
    assert result.document["norms"] == 1


def test_the_sidecar_leaves_out_what_the_folded_model_holds(
    folded: Path, normed: Path, tmp_path: Path
) -> None:
    assert (tmp_path / "folded.undo").stat().st_size < normed.stat().st_size + 200


def test_a_sidecar_of_another_model_is_refused(
    bnpass: Run, folded: Path, plain: Path, tmp_path: Path
) -> None:
    before = files(tmp_path)
    bnpass("unfold", plain, tmp_path / "folded.undo", "-o", tmp_path / "o.onnx").assert_refused(
        2, "belongs to another model")
    bnpass("unfold", folded, plain, "-o", tmp_path / "o.onnx").assert_refused(2, "no sidecar")
    bnpass("unfold", folded, tmp_path / "no.undo", "-o", tmp_path / "o.onnx").assert_refused(
        2, "no such file", "folded.undo")
    assert files(tmp_path) == before


def test_neither_input_is_written_onto(bnpass: Run, folded: Path, tmp_path: Path) -> None:
    sidecar = tmp_path / "folded.undo"
    for target in (folded, sidecar):
        bnpass("unfold", folded, sidecar, "-o", target, "--force").assert_refused(
            2, "the output is the input")


def test_an_existing_sidecar_is_kept_without_force(
    bnpass: Run, normed: Path, folded: Path, tmp_path: Path
) -> None:
    common = ("fold", normed, "-o", tmp_path / "new.onnx", "--sidecar")
    bnpass(*common, tmp_path / "folded.undo").assert_refused(2, "the output exists")
    assert not (tmp_path / "new.onnx").exists()
    bnpass(*common, tmp_path / "new.onnx").assert_refused(2, "output and sidecar are one file")
