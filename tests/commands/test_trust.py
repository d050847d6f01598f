"""What only a file declares of a shape: listed, checked by running the network, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import bnpass
from bnpass.cli import main
from bnpass.errors import RefusedError, VerificationError
from tests.helpers import Norm, Weights, build

NOWHERE = ', "acme": 1'  # a domain of which no runtime has heard
MS = ', "com.microsoft": 1'
LAYER: Weights = {"W": (5, 6), "b": (6,), "U": (6, 2), "n": Norm(6)}


def model(
    kind: str, shape: list[str | int], domains: str = NOWHERE, norm: str = "d = BN(a, n)"
) -> onnx.ModelProto:
    made = build(
        f"""(float[N, 5] x) => (float[N, 2] y)
        {{ h = {kind}(x)  m = MatMul(h, W)  a = Add(m, b)  {norm}  t = Relu(d)
          y = MatMul(t, U) }}""",
        LAYER,
        domains=domains,
    )
    made.graph.value_info.append(onnx.helper.make_tensor_value_info("h", 1, shape))
    return made


@pytest.fixture
def unknown(tmp_path: Path) -> str:
    onnx.save(model("acme.Thing", ["N", 5]), tmp_path / "m.onnx")
    return str(tmp_path / "m.onnx")


def _norms(path: Path) -> int:
    return sum(n.op_type == "BatchNormalization" for n in onnx.load(path).graph.node)


def test_a_fold_that_nothing_can_check(
    unknown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.onnx"
    for words in ([], ["--check-budget", "0"]):
        assert main(["fold", unknown, "-o", str(out), *words]) == 2
        text = capsys.readouterr().err
        assert "right only if shapes are what the file declares" in text
        assert "--trust-shapes" in text
        assert not out.exists()
    assert main(["fold", unknown, "-o", str(out), "--trust-shapes", "--explain"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "rest on shapes that only the file declares, of 'h'" in text
    assert "trusting a declared shape" in text
    assert _norms(out) == 0


def test_it_is_listed(unknown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fold", unknown, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [entry["declared"] for entry in plan["folds"]] == [True]
    assert plan["stated_shapes"] == ["h"]
    found = bnpass.fold(unknown, plan_only=True)
    assert "trusting a declared shape" in str(found)


def test_in_python(unknown: str) -> None:
    with pytest.raises(RefusedError, match="only if shapes are what the file declares"):
        bnpass.fold(unknown)
    folded = bnpass.fold(unknown, trust_shapes=True)
    assert all(n.op_type != "BatchNormalization" for n in folded.graph.node)


def test_what_inference_knows_needs_no_trust(capsys: pytest.CaptureFixture[str]) -> None:
    """A Gemm's weight says what it computes, whatever the file declares of its input."""
    made = model("acme.Thing", ["N", 5])
    gemm = made.graph.node[1]
    gemm.op_type = "Gemm"
    found = bnpass.fold(made, plan_only=True)
    assert [(e.how, e.declared) for e in found.entries] == [("backward", False)]


def test_a_file_that_says_the_wrong_thing_of_a_value_that_is_known() -> None:
    """Inference wins: h has five columns, not seven in two axes more."""
    made = model("com.microsoft.Gelu", ["N", 1, 1, 7], MS)
    plan = bnpass.fold(made, plan_only=True)
    assert [(e.how, e.declared) for e in plan.entries] == [("backward", False)]


def test_a_wrong_shape_is_found_by_running(tmp_path: Path) -> None:
    """Six rows of six columns, of which the file says that they are columns alone.

    SampleOp is onnxruntime's own echo, and says nothing of shapes.
    """
    made = model("com.microsoft.SampleOp", ["N", 5], MS)
    made.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", 1, [2, 6, 5]))
    made.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, [2, 6, 2]))
    with pytest.raises(VerificationError, match="the two models differ"):
        bnpass.fold(made)
    made.graph.value_info[0].CopyFrom(onnx.helper.make_tensor_value_info("h", 1, [2, 6, 5]))
    plan = bnpass.fold(made, plan_only=True)
    assert [e.how for e in plan.entries] == [""]  # rows are no columns


def test_a_right_shape_passes_by_running() -> None:
    made = model("com.microsoft.SampleOp", ["N", 5], MS)
    folded = bnpass.fold(made)
    assert all(n.op_type != "BatchNormalization" for n in folded.graph.node)


def test_insert(unknown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain.onnx"
    onnx.save(model("acme.Thing", ["N", 5], norm="d = Identity(a)"), plain)
    assert main(["insert", str(plain), "--dry-run", "--explain", "--json"]) == 0
    sites = json.loads(capsys.readouterr().out)["plan"]["sites"]
    assert [site["declared"] for site in sites] == [True]
    out = tmp_path / "o.onnx"
    assert main(["insert", str(plain), "-o", str(out), "--init", "preserve"]) == 2
    assert "--trust-shapes" in capsys.readouterr().err
    words = ["insert", str(plain), "-o", str(out), "--init", "preserve", "--trust-shapes"]
    assert main(words) == 0
    assert "rest on shapes that only the file declares" in capsys.readouterr().out
    assert _norms(out) == 1
