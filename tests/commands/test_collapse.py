"""bnpass collapse, and fold --collapse."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.commands.helpers import Run, files, write
from tests.helpers import Norm, assert_equal_bytes, assert_same, build

REPVGG = """(float[N,4,8,8] x) => (float[] y) {
  a = Conv <pads = [1,1,1,1]> (x, w3) a2 = BN(a, n)
  b = Conv(x, w1) b2 = BN(b, m)
  c = BN(x, o)
  s = Add(a2, b2)
  t = Add(s, c)
  y = Relu(t)
}"""
PLAIN = """(float[N,4,8,8] x) => (float[] y) {
  a = Conv <pads = [1,1,1,1]> (x, w3) b = Conv(x, w1) s = Add(a, b) y = Relu(s)
}"""
KERNELS = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    norms = {"n": Norm(4), "m": Norm(4), "o": Norm(4)}
    return write(build(REPVGG, {**KERNELS, **norms}), tmp_path / "net.onnx")


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_branches_become_one_layer(bnpass: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("collapse", model, "-o", out, "--explain")
    assert result.code == 0, result.err
    assert kinds(out) == ["Conv", "Relu"]
    assert "1 region became one operator" in result.out
    onnx.checker.check_model(str(out), full_check=True)
    assert_same(onnx.load(model), onnx.load(out))


def test_fold_does_it_by_itself_and_unfold_undoes_it(
    bnpass: Run, model: Path, tmp_path: Path
) -> None:
    out, sidecar, back = (tmp_path / n for n in ("out.onnx", "side.bin", "back.onnx"))
    result = bnpass("fold", model, "-o", out, "--sidecar", sidecar)
    assert result.code == 0, result.err
    assert kinds(out) == ["Conv", "Relu"]
    assert "3 of 3 maps folded: 3 of 3 BatchNorms (3 collapsed)" in result.out
    assert bnpass("unfold", out, sidecar, "-o", back).code == 0
    assert_equal_bytes(onnx.load(model), onnx.load(back))


def test_without_norms_fold_is_told_to(bnpass: Run, tmp_path: Path) -> None:
    model = write(build(PLAIN, KERNELS), tmp_path / "net.onnx")
    bnpass("fold", model, "-o", tmp_path / "a.onnx")
    assert kinds(tmp_path / "a.onnx") == ["Conv", "Conv", "Add", "Relu"]
    bnpass("fold", model, "-o", tmp_path / "b.onnx", "--collapse", "all")
    assert kinds(tmp_path / "b.onnx") == ["Conv", "Relu"]
    bnpass("collapse", model, "-o", tmp_path / "c.onnx", "--norms-only")
    assert kinds(tmp_path / "c.onnx") == ["Conv", "Conv", "Add", "Relu"]


def test_a_plan_as_json_writes_nothing(bnpass: Run, model: Path, tmp_path: Path) -> None:
    result = bnpass("collapse", model, "--dry-run", "--json")
    (region,) = result.document["plan"]["regions"]
    assert region["weights"] == [36 * 4 + 16 + 12, 36 * 4] and len(region["norms"]) == 3
    assert files(tmp_path) == ["net.onnx"]


def test_weights_in_a_file_beside_it(bnpass: Run, tmp_path: Path) -> None:
    norms = {"n": Norm(64), "m": Norm(64), "o": Norm(64)}
    weights = {"w3": (64, 64, 3, 3), "w1": (64, 64, 1, 1), **norms}
    model = build(REPVGG.replace("N,4", "N,64"), weights)
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data",
              size_threshold=100)  # fmt: skip
    result = bnpass("fold", tmp_path / "net.onnx", "-o", tmp_path / "out.onnx")
    assert result.code == 0, result.err
    assert kinds(tmp_path / "out.onnx") == ["Conv", "Relu"]
    assert_same(onnx.load(tmp_path / "net.onnx"), onnx.load(tmp_path / "out.onnx"))
