"""bnpass fold."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnpass import files as model_files
from bnpass.files import save_model
from tests import processes
from tests.commands.helpers import Run, add_norm, files, mlp, write


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def unfoldable() -> onnx.ModelProto:
    """A BN that reads the graph's input and is read by a nonlinearity."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4] x) => (float[N, 4] y)
        <float[4] g = {1, 2, 3, 4}, float[4] b = {0, 0, 1, 1}, float[4] m = {0, 1, 0, 1},
         float[4] v = {1, 1, 2, 2}>
        { n = BatchNormalization(x, g, b, m, v)  y = Sigmoid(n) }
        """
    )
    model.graph.node[0].name = "stuck"
    return model


def test_the_norm_goes_into_the_weights(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("fold", normed, "-o", out)
    assert result.code == 0, result.err
    assert kinds(out) == ["Gemm", "Sigmoid", "Gemm"]
    assert "1 of 1 maps folded: 1 of 1 BatchNorm (1 backward)" in result.out
    assert "verified on" in result.out
    assert [row.split()[1:-1] for row in result.out.splitlines() if "BatchNorm  " in row] == [
        ["BatchNorm", "│", "1", "│", "0"]]
    assert re.search(r"PASSED: largest error \S+ where \S+ is allowed", result.out)
    assert result.out.splitlines()[-2:] == [f"wrote {out}", f"next: bnpass bench {normed} {out}"]
    assert bnpass("verify", normed, out).code == 0


def test_the_input_is_never_touched(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    before = normed.read_bytes()
    bnpass("fold", normed, "-o", tmp_path / "out.onnx")
    assert normed.read_bytes() == before


def test_json_has_the_plan_and_the_proof(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    document = bnpass("fold", normed, "-o", tmp_path / "out.onnx", "--json").document
    assert document["folded"] == 1
    assert document["left"] == 0
    assert document["verify"]["passed"] is True
    assert document["plan"]["folds"][0]["into"] == ["fc0"]


def test_explain_gives_the_reason_of_what_stays(bnpass: Run, tmp_path: Path) -> None:
    path = write(unfoldable(), tmp_path / "net.onnx")
    result = bnpass("fold", path, "--explain")
    assert result.code == 0
    assert "stuck" in result.out
    assert "input of the graph" in result.out
    assert files(tmp_path) == ["net.onnx"]
    assert bnpass("fold", path, "--dry-run", "--require-change").code == 1


def test_nothing_to_do_is_said_and_the_copy_is_the_same(
    bnpass: Run, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("fold", plain, "-o", out)
    assert result.code == 0
    assert len(result.out.splitlines()) == 1 and "nothing to do" in result.out
    assert out.read_bytes() == plain.read_bytes()
    wanted = bnpass("fold", plain, "--dry-run", "--require-change")
    assert wanted.code == 1
    assert "--require-change, and nothing changed: the model has no BatchNorm" in wanted.errors[0]


def test_quiet_prints_nothing_and_json_has_both_sides(
    bnpass: Run, normed: Path, tmp_path: Path
) -> None:
    quiet = bnpass("fold", normed, "-o", tmp_path / "a.onnx", "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    document = bnpass("fold", normed, "-o", tmp_path / "b.onnx", "-q", "--json").document
    numbers = 6 * 8 + 8 + 8 * 3 + 3
    assert document["before"] == {
        "batch_norms": 1, "nodes": 4, "parameters": numbers + 4 * 8,
        "multiply_adds": 6 * 8 + 8 * 3, "bytes": normed.stat().st_size}
    assert document["after"] == {
        "batch_norms": 0, "nodes": 3, "parameters": numbers, "multiply_adds": 6 * 8 + 8 * 3,
        "bytes": (tmp_path / "b.onnx").stat().st_size}


def test_folding_twice_is_folding_once(bnpass: Run, normed: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    bnpass("fold", normed, "-o", once)
    bnpass("fold", once, "-o", twice)
    assert once.read_bytes() == twice.read_bytes()


def test_skip_leaves_a_norm_and_misspelt_names_are_refused(
    bnpass: Run, normed: Path, tmp_path: Path
) -> None:
    assert bnpass("fold", normed, "--dry-run", "--json", "--skip", "bn").document["folded"] == 0
    bnpass("fold", normed, "--dry-run", "--skip", "bnn").assert_refused(2, "'bnn'", "'bn'")


def test_an_existing_output_is_kept_without_force(
    bnpass: Run, normed: Path, plain: Path
) -> None:
    before = plain.read_bytes()
    bnpass("fold", normed, "-o", plain).assert_refused(2, "the output exists", "--force")
    assert plain.read_bytes() == before
    assert bnpass("fold", normed, "-o", plain, "--force").code == 0


def test_a_failed_verification_writes_nothing(
    bnpass: Run, normed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnpass.frontends.onnx import folding

    right = folding.fold

    def wrong(*arguments: object, **options: object) -> object:
        done = right(*arguments, **options)  # type: ignore[arg-type]
        bias = next(t for t in done.model.graph.initializer if t.name == "b1")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, 9, np.float32), "b1"))
        return done

    monkeypatch.setattr(folding, "fold", wrong)
    result = bnpass("fold", normed, "-o", tmp_path / "out.onnx")
    assert result.code == 1
    assert "the two models differ" in result.errors[0]
    assert files(tmp_path) == ["normed.onnx"]
    assert bnpass("fold", normed, "-o", tmp_path / "out.onnx", "--no-verify").code == 0


def test_external_data_stays_external(bnpass: Run, tmp_path: Path) -> None:
    model = add_norm(mlp())
    big = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.tile(big, (10, 1)), "unused"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("unused2", 1, [60, 8]))
    model.graph.node.append(onnx.helper.make_node("Identity", ["unused"], ["unused2"]))
    path = save_model(model, tmp_path / "net.onnx", external=True)
    out = tmp_path / "out.onnx"
    assert bnpass("fold", path, "-o", out).code == 0
    assert [p.name.startswith("out.onnx.") for p in model_files.data_files(out)] == [True]
    assert bnpass("verify", path, out).code == 0


def test_a_norm_in_training_mode_stays(bnpass: Run, tmp_path: Path) -> None:
    model = add_norm(mlp())
    norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    norm.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    norm.output.extend(["running_mean", "running_var"])
    path = write(model, tmp_path / "net.onnx")
    shown = bnpass("fold", path, "--explain")
    assert "training" in shown.out
    assert bnpass("fold", path, "--dry-run", "--json").document["folded"] == 0
    wanted = bnpass("fold", path, "--dry-run", "--json", "--training-mode", "inference")
    assert wanted.document["folded"] == 1


def test_folding_and_inserting_never_import_torch(
    normed: Path, plain: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from bnpass.cli import main\n"
        f"assert main(['fold', {str(normed)!r}, '-o', {str(tmp_path / 'f.onnx')!r}]) == 0\n"
        f"assert main(['insert', {str(plain)!r}, '-o', {str(tmp_path / 'i.onnx')!r}]) == 0\n"
        "assert 'onnxruntime' in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = processes.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_onnxruntime_the_hint_names_pip_and_no_verify(
    bnpass: Run, normed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = bnpass("fold", normed, "-o", tmp_path / "o.onnx")
    assert result.code == 3
    assert "onnxruntime" in result.errors[0]
    assert "pip install" in result.errors[1]
    assert "--no-verify" in result.errors[1]
    assert bnpass("fold", normed, "-o", tmp_path / "o.onnx", "--no-verify").code == 0


def cut_off(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "w0")
    tensor.raw_data = tensor.raw_data[:-3]


def of_another_size(model: onnx.ModelProto) -> None:
    norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    tensor = next(t for t in model.graph.initializer if t.name == norm.input[4])
    new = onnx.numpy_helper.from_array(np.ones(tensor.dims[0] + 3, np.float32), tensor.name)
    tensor.CopyFrom(new)


def in_a_circle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.output[0].name


def named_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


@pytest.mark.parametrize(
    ("damage", "named"),
    [(named_twice, "two initializers are named"), (cut_off, "w0"),
     (of_another_size, "Dimension mismatch"), (in_a_circle, "topologically")],
)  # fmt: skip
@pytest.mark.parametrize("more", [(), ("--no-verify",), ("--dry-run",)])
def test_a_damaged_model_is_blamed_not_the_program(
    bnpass: Run, normed: Path, tmp_path: Path, damage: Callable[[onnx.ModelProto], None],
    named: str, more: tuple[str, ...],
) -> None:  # fmt: skip
    model = onnx.load(normed)
    damage(model)
    normed.write_bytes(model.SerializeToString())
    result = bnpass("fold", normed, "-o", tmp_path / "out.onnx", *more)
    result.assert_refused(2, "not a valid ONNX model", "check_model")
    assert named in result.errors[0]
    assert files(tmp_path) == ["normed.onnx"]


@pytest.mark.parametrize(
    ("one", "other"),
    [(["--no-verify"], ["--dims", "N=3"]), (["--dry-run"], ["--report=r.html"]),
     (["--check"], ["--sidecar", "s"])],
)  # fmt: skip
def test_options_that_leave_each_other_idle_are_refused(
    bnpass: Run, normed: Path, one: list[str], other: list[str]
) -> None:
    said = f"{one[0]} with {other[0].partition('=')[0]}"
    bnpass("fold", normed, *one, *other).assert_refused(2, said, "leave one of them out")
