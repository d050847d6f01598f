"""bnpass fold --sidecar and bnpass unfold."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import onnx
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


def test_a_flipped_bit_is_found_wherever_it_is(
    bnpass: Run, folded: Path, tmp_path: Path
) -> None:
    sidecar = tmp_path / "folded.undo"
    whole = sidecar.read_bytes()
    for place in (0, 5, len(whole) // 3, len(whole) // 2, len(whole) - 70, len(whole) - 1):
        for bit in (1, 0x40):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            sidecar.write_bytes(damaged)
            bnpass("unfold", folded, sidecar, "-o", tmp_path / "o.onnx").assert_refused(2, "undo")
    assert not (tmp_path / "o.onnx").exists()
    for part in (whole[:-1], whole[:-90], whole + b"\0", b""):
        sidecar.write_bytes(part)
        bnpass("unfold", folded, sidecar, "-o", tmp_path / "o.onnx").assert_refused(2, "undo")


def test_a_changed_folded_model_is_refused(bnpass: Run, folded: Path, tmp_path: Path) -> None:
    changed = onnx.load(folded)
    changed.graph.initializer[0].raw_data = changed.graph.initializer[0].raw_data[::-1]
    folded.write_bytes(changed.SerializeToString())
    bnpass("unfold", folded, tmp_path / "folded.undo", "-o", tmp_path / "o.onnx").assert_refused(
        2, "belongs to another model")


def test_a_sidecar_that_agrees_with_itself_alone_is_refused(
    bnpass: Run, folded: Path, tmp_path: Path
) -> None:
    """Whoever mends the checksum has not mended the original's hash."""
    sidecar = tmp_path / "folded.undo"
    lying = onnx.ModelProto.FromString(sidecar.read_bytes())
    lying.graph.name = "another"
    del lying.metadata_props[-1]
    content = lying.SerializeToString()
    note = onnx.ModelProto()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    note.metadata_props.add(key="bnpass.checksum", value=digest)
    sidecar.write_bytes(content + note.SerializeToString())
    bnpass("unfold", folded, sidecar, "-o", tmp_path / "o.onnx").assert_refused(
        2, "does not give the original back")


def test_model_and_sidecar_are_written_together_or_not_at_all(
    bnpass: Run, normed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = ("-o", tmp_path / "f.onnx", "--sidecar", tmp_path / "f.undo")
    assert bnpass("fold", normed, *pair).code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    whole = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if target.name == "f.onnx":
            raise OSError(28, "No space left on device")
        return whole(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    bnpass("fold", normed, *pair, "--force", "--leftover", "affine", "--skip", "bn"
           ).assert_refused(2, "cannot be written")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
