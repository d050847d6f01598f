"""bnpass draw."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import onnx
import pytest

from tests.commands.helpers import Run, add_norm, mlp, write


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


def test_svg_without_graphviz(
    bnpass: Run, normed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert bnpass("draw", normed, "-o", tmp_path / "net.svg").code == 0
    root = ET.parse(tmp_path / "net.svg").getroot()
    boxes = root.findall("./{*}g")
    assert len(boxes) == 6
    (norm,) = [box for box in boxes if "norm" in box.attrib["class"].split()]
    assert "dashed" in norm.attrib["class"]
    assert len(root.findall("./{*}path")) == 5


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_png_and_pdf(bnpass: Run, normed: Path, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / f"net.{ending}"
    assert bnpass("draw", normed, "-o", out).code == 0
    assert out.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"%PDF")


def test_the_difference_of_two(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    folded, out = tmp_path / "folded.onnx", tmp_path / "net.svg"
    assert bnpass("fold", normed, "-o", folded).code == 0
    result = bnpass("draw", normed, folded, "-o", out, "--json")
    assert json.loads(result.out)["states"] == {"added": 0, "removed": 1, "changed": 1}
    boxes = ET.parse(out).getroot().findall("./{*}g")
    removed = [box for box in boxes if "removed" in box.attrib["class"].split()]
    assert ["BatchNormalization" in "".join(box.itertext()) for box in removed] == [True]


def test_another_ending_is_refused(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    bnpass("draw", normed, "-o", tmp_path / "net.jpeg").assert_refused(2, "cannot draw", ".svg")
