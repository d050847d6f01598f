"""bnpass insert."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.commands.helpers import Run, files, mlp, write
from tests.fuzz.generator import generate


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_norm_goes_in_front_of_every_nonlinearity(
    bnpass: Run, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("insert", plain, "-o", out)
    assert result.code == 0, result.err
    assert kinds(out) == ["Gemm", "BatchNormalization", "Sigmoid", "Gemm"]
    assert len(onnx.load(out).graph.node[0].input) == 2
    assert "1 BatchNorm for 1 of 1 nonlinearity, 1 bias dropped" in result.out
    assert "next: bnpass train" in result.out.splitlines()[-1]


def test_explain_names_sites_and_reasons(bnpass: Run, tmp_path: Path) -> None:
    path = write(mlp(ending="Sigmoid"), tmp_path / "net.onnx")
    result = bnpass("insert", path, "--explain")
    assert result.code == 0
    for part in ("fc0", "act0", "end", "--last includes it"):
        assert part in result.out
    assert files(tmp_path) == ["net.onnx"]
    assert bnpass("insert", path, "--last", "--dry-run", "--json").document["inserted"] == 2


def test_a_dry_run_writes_nothing(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    result = bnpass("insert", plain, "-o", tmp_path / "out.onnx", "--dry-run", "--json")
    assert result.document["plan"]["sites"][0]["nonlinearities"] == ["act0"]
    assert files(tmp_path) == ["plain.onnx"]


def test_only_and_skip(bnpass: Run, tmp_path: Path) -> None:
    path = write(mlp(layers=4), tmp_path / "net.onnx")

    def sites(*arguments: str) -> list[str]:
        document = bnpass("insert", path, "--dry-run", "--json", *arguments).document
        return [name for site in document["plan"]["sites"] for name in site["nonlinearities"]]

    assert sites() == ["act0", "act1", "act2"]
    assert sites("--only", "act[01]") == ["act0", "act1"]
    assert sites("--skip", "act1", "--skip", "act2") == ["act0"]
    assert sites("--only", "Sigmoid", "--before", "sigmoid") == ["act0", "act1", "act2"]
    bnpass("insert", path, "--dry-run", "--only", "acct1").assert_refused(
        2, "no node matches 'acct1'", "did you mean 'act1'")


@pytest.mark.parametrize("init", ["preserve", "calibrated"])
def test_the_function_is_kept_on_request(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path, init: str
) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("insert", plain, "-o", out, "--init", init,
                    *(("--data", data) if init == "calibrated" else ()))
    assert result.code == 0, result.err
    assert "verified on" in result.out
    assert "BatchNormalization" in kinds(out)
    assert bnpass("verify", plain, out, "--rtol", "1e-5").code == 0


def test_calibrated_wants_data(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    bnpass("insert", plain, "-o", tmp_path / "o.onnx", "--init", "calibrated").assert_refused(
        2, "needs samples", "--data")


def test_without_nonlinearities_there_is_nothing_to_do(
    bnpass: Run, tmp_path: Path
) -> None:
    path = write(mlp(kind=""), tmp_path / "linear.onnx")
    out = tmp_path / "out.onnx"
    result = bnpass("insert", path, "-o", out)
    assert result.code == 0
    assert "nothing to do" in result.out
    assert out.read_bytes() == path.read_bytes()
    assert bnpass("insert", path, "--dry-run", "--require-change").code == 1


def test_a_second_insert_changes_nothing(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    bnpass("insert", plain, "-o", once)
    assert bnpass("insert", once, "-o", twice).code == 0
    assert once.read_bytes() == twice.read_bytes()


def test_no_output_is_a_usage_error(bnpass: Run, plain: Path) -> None:
    bnpass("insert", plain).assert_refused(2, "no output", "-o plain.bn.onnx")


def test_bad_files_are_refused(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    (tmp_path / "text.onnx").write_text("no model\n")
    bnpass("insert", tmp_path / "plian.onnx", "-o", out).assert_refused(
        2, "no such file", "did you mean 'plain.onnx'?")
    bnpass("insert", tmp_path / "text.onnx", "-o", out).assert_refused(2, "not an ONNX model")
    bnpass("insert", plain, "-o", plain, "--force").assert_refused(2, "the output is the input")
    assert not out.exists()


def test_a_quantised_model_is_refused(bnpass: Run, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4] x) => (float[N, 4] y)
        <float s = {0.1}, uint8 z = {128}>
        { q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Relu(d) }
        """
    )
    path = write(model, tmp_path / "q.onnx")
    bnpass("insert", path, "-o", tmp_path / "o.onnx").assert_refused(2, "quantised")


@pytest.mark.parametrize("seed", [1, 41, 103, 187])
def test_the_check_is_told_what_stands_for_what(bnpass: Run, tmp_path: Path, seed: int) -> None:
    """An input that is normalised, a recurrent layer that is split, clones, sizes of a Resize."""
    model = generate(seed, maps=0.08, nonlinear=0.3)
    path = write(model, tmp_path / "given.onnx")
    options = ("--init", "preserve", "--gates", "--last", "--clone", "--allow-unfoldable")
    done = bnpass("insert", path, "-o", tmp_path / "out.onnx", *options)
    assert done.code == 0, done.err
    assert "BatchNormalization" in kinds(tmp_path / "out.onnx")


def test_unknown_types_of_nonlinearities_are_refused(bnpass: Run, plain: Path) -> None:
    bnpass("insert", plain, "--dry-run", "--before", "sigmoid,relo").assert_refused(
        2, "no nonlinearity is called 'relo'", "'relu'")
    assert bnpass("insert", plain, "--dry-run", "--before", "relu,composite").code == 0
