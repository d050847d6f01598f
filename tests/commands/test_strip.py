"""bnpass strip."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import bnpass as api
from bnpass.errors import VerificationError
from bnpass.frontends.onnx import inserting
from bnpass.onnx_model.model import OnnxModel
from tests.commands.helpers import Run, files, write

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y)
<float[4, 4, 1, 1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
 float r = {0.5}>
{ c = Conv(x, w)  a = Relu(c)  n = LRN <size = 3> (a)  d = Dropout(n, r)  y = Identity(d) }
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(onnx.parser.parse_model(TEXT), tmp_path / "net.onnx")


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_both_go_by_default(bnpass: Run, model: Path, tmp_path: Path) -> None:
    result = bnpass("strip", model, "-o", tmp_path / "out.onnx", "--explain")
    assert result.code == 0, result.err
    assert not {"LRN", "Dropout"} & set(kinds(tmp_path / "out.onnx"))
    assert "2 layers taken out" in result.out
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


def test_one_of_them(bnpass: Run, model: Path, tmp_path: Path) -> None:
    bnpass("strip", model, "-o", tmp_path / "out.onnx", "--strip", "lrn")
    assert "Dropout" in kinds(tmp_path / "out.onnx")
    assert "LRN" not in kinds(tmp_path / "out.onnx")


def test_dropout_can_be_reduced(bnpass: Run, model: Path, tmp_path: Path) -> None:
    document = bnpass("strip", model, "-o", tmp_path / "out.onnx", "--dropout", "0.1",
                      "--json").document
    assert len(document["plan"]["reduced"]) == 1
    assert "Dropout" in kinds(tmp_path / "out.onnx")


def test_insert_strips_on_request(bnpass: Run, model: Path, tmp_path: Path) -> None:
    result = bnpass("insert", model, "-o", tmp_path / "out.onnx", "--strip", "lrn,dropout",
                    "--last")
    assert result.code == 0, result.err
    assert not {"LRN", "Dropout"} & set(kinds(tmp_path / "out.onnx"))
    assert "BatchNormalization" in kinds(tmp_path / "out.onnx")


def test_nothing_to_do(bnpass: Run, plain: Path) -> None:
    result = bnpass("strip", plain, "--dry-run")
    assert result.code == 0
    assert "nothing to do" in result.out
    assert bnpass("strip", plain, "--dry-run", "--require-change").code == 1
    assert files(plain.parent) == ["plain.onnx"]


def test_an_unknown_kind_gets_a_close_match(bnpass: Run, model: Path) -> None:
    bnpass("strip", model, "--dry-run", "--strip", "dropuot").assert_refused(
        2, "dropuot", "did you mean 'dropout'?")


def test_without_dropout_it_is_proven_to_compute_the_same(
    bnpass: Run, model: Path, tmp_path: Path
) -> None:
    result = bnpass("strip", model, "-o", tmp_path / "out.onnx", "--strip", "dropout")
    assert result.code == 0, result.err
    assert "every edit: right" in result.out and "verified on" in result.out
    reduced = bnpass("strip", model, "-o", tmp_path / "less.onnx", "--dropout", "0.1",
                     "--strip", "dropout")
    assert "every edit: right" in reduced.out
    with_lrn = bnpass("strip", model, "-o", tmp_path / "both.onnx")
    assert "every edit: right" in with_lrn.out and "without its 1 LRN" in with_lrn.err


@pytest.mark.parametrize("what", ["dropout", "lrn", "lrn,dropout"])
def test_a_wrong_strip_is_not_written(
    bnpass: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    right = inserting.strip

    def wrong(given: OnnxModel, wanted: inserting.StripOptions) -> inserting.Stripped:
        done = right(given, wanted)
        next(n for n in done.model.graph.node if n.op_type == "Relu").op_type = "Abs"
        return done

    monkeypatch.setattr(inserting, "strip", wrong)
    result = bnpass("strip", model, "-o", tmp_path / "out.onnx", "--strip", what)
    assert result.code == 1 and "is wrong" in result.err
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(VerificationError):
        api.strip(model, what.split(","), output=tmp_path / "out.onnx")
    with pytest.raises(VerificationError):
        api.strip(onnx.load(model), what.split(","))
    api.strip(model, what.split(","), output=tmp_path / "out.onnx", verify=False)


def test_dropouts_that_are_live_in_the_file(bnpass: Run, tmp_path: Path) -> None:
    text = TEXT.replace("Dropout(n, r)", "Dropout(n, r, t)")
    text = text.replace("float r = {0.5}", "float r = {0.5}, bool t = {1}")
    path = write(onnx.parser.parse_model(text), tmp_path / "live.onnx")
    result = bnpass("strip", path, "-o", tmp_path / "out.onnx", "--strip", "dropout")
    assert result.code == 0, result.err
    assert "verified on" in result.out


def test_a_ratio_for_dropouts_that_are_not_meant(bnpass: Run, model: Path) -> None:
    bnpass("strip", model, "--dry-run", "--strip", "lrn", "--dropout", "0.1").assert_refused(
        2, "--dropout with --strip lrn")
