"""bnpass draw."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from tests.commands.helpers import Run, add_norm, files, mlp, write


def test_dot_shows_operators_edges_and_what_folds(
    bnpass: Run, normed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "net.dot"
    result = bnpass("draw", normed, "-o", out)
    assert result.code == 0, result.err
    text = out.read_text()
    assert text.startswith("digraph network {")
    assert text.count(" -> ") == 5
    (norm,) = [line for line in text.splitlines() if "BatchNormalization" in line]
    assert "dashed" in norm
    assert "#f4a261" in norm
    assert "N x 6" in text


def test_mermaid_escapes_names(bnpass: Run, tmp_path: Path) -> None:
    model = add_norm(mlp())
    model.graph.node[0].name = 'a "quoted" <name>'
    out = tmp_path / "net.mmd"
    assert bnpass("draw", write(model, tmp_path / "net.onnx"), "-o", out).code == 0
    text = out.read_text()
    assert text.startswith("flowchart TB")
    assert "a &quot;quoted&quot; &lt;name>" in text
    assert "stroke-dasharray" in text


def test_a_norm_that_stays_is_not_dashed(bnpass: Run, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 2] x) => (float[N, 2] y)
        <float[2] g = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 1}, float[2] v = {1, 2}>
        { n = BatchNormalization(x, g, b, m, v)  y = Sigmoid(n) }
        """
    )
    bnpass("draw", write(model, tmp_path / "net.onnx"), "-o", tmp_path / "net.dot")
    assert "dashed" not in (tmp_path / "net.dot").read_text()


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_svg(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    assert bnpass("draw", normed, "-o", tmp_path / "net.svg").code == 0
    assert "<svg" in (tmp_path / "net.svg").read_text()


def test_without_graphviz_the_hint_says_what_works(
    bnpass: Run, normed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    bnpass("draw", normed, "-o", tmp_path / "net.svg").assert_refused(3, "Graphviz", ".mmd")
    assert files(tmp_path) == ["normed.onnx"]


def test_another_ending_is_refused(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    bnpass("draw", normed, "-o", tmp_path / "net.jpeg").assert_refused(2, "cannot draw", ".svg")
