"""Free dimensions and counts among the inputs: what layers fix, what people give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bnpass.cli import main
from bnpass.errors import InputError
from bnpass.runtime.inputs import Draw, fixed_sizes, random_inputs
from bnpass.runtime.verify import verify
from tests.helpers import Norm, Weights, build

FIXED: list[tuple[str, Weights, dict[str, int]]] = [
    ("(float[n, c, h, w] x) => (float[A, B, C, D] y) { y = Conv <group = 2> (x, W) }",
     {"W": (4, 3, 3, 3)}, {"c": 6}),
    ("(float[n, d] x) => (float[A, B] y) { y = Gemm <transB = 1> (x, W) }", {"W": (6, 5)},
     {"d": 5}),
    ("(float[n, t, d] x) => (float[A, B, C] y) { y = MatMul(x, W) }", {"W": (5, 6)}, {"d": 5}),
    ("(float[n, c, l] x) => (float[A, B, C] y) { y = ConvTranspose(x, W) }", {"W": (4, 3, 3)},
     {"c": 4}),
    ("(float[n, c, l] x) => (float[A, B, C] y) { y = BN(x, m) }", {"m": Norm(7)}, {"c": 7}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "weights", "sizes"), FIXED)
def test_layers_fix_sizes(text: str, weights: Weights, sizes: dict[str, int]) -> None:
    model = build(text, weights)
    assert fixed_sizes(model) == sizes


def norms(text: str) -> onnx.ModelProto:
    return build(text, {"W": (4, 3, 3, 3), "n": Norm(4)})


def test_a_fold_is_verified_whatever_the_axes_are_called(tmp_path: Path) -> None:
    model = norms("(float[n, c, h, w] x) => (float[A, 4, B, C] y) { a = Conv(x, W)  y = BN(a, n) }")
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["fold", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "f.onnx")]) == 0


TOPK = """(float[N, 3, 6, 6] x, int64[1] k) => (float[N, K, 4, 4] y, int64[N, K, 4, 4] i)
    { a = Conv(x, W)  b = BN(a, n)  y, i = TopK <axis = 1> (b, k) }"""


def test_a_count_is_given_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(norms(TOPK), tmp_path / "m.onnx")
    words = ["fold", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "f.onnx")]
    assert main(words) == 2
    assert "--dims k=2" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--dims", "k=3"]) == 0


def test_a_count_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match="'k' is a shape or a count"):
        random_inputs(norms(TOPK), Draw())
    drawn = random_inputs(norms(TOPK), Draw(dims=(("k", 2),)))
    np.testing.assert_array_equal(drawn["k"], [2])


@pytest.mark.parametrize("text", ["k", "k=", "=3", "k=x"])
def test_malformed_sizes(text: str, tmp_path: Path) -> None:
    onnx.save(norms(TOPK), tmp_path / "m.onnx")
    assert main(["fold", str(tmp_path / "m.onnx"), "--dims", text]) == 2


def test_an_input_of_rank_0_is_an_array() -> None:
    model = build(
        "(float[N, 4] x, float f) => (float[N, 4] y) { y = Mul(x, f) }", {}
    )
    drawn = random_inputs(model, Draw())
    assert isinstance(drawn["f"], np.ndarray)
    assert drawn["f"].dtype == np.float32


UNKNOWN: list[tuple[list[int | str], list[int | str]]] = [
    ([0, 3, 8, 8], [0, 4, 6, 6]),
    ([0, 3, 0, 0], [0, 4, 0, 0]),
    ([2, 0, -1, "W"], [2, 4, 0, 0]),
]


def sizes_written(model: onnx.ModelProto, name: str, sizes: list[int | str]) -> None:
    """State an input's or output's sizes."""
    values = (*model.graph.input, *model.graph.output)
    shape = next(v for v in values if v.name == name).type.tensor_type.shape
    for dim, size in zip(shape.dim, sizes, strict=True):
        dim.Clear()
        setattr(dim, "dim_param" if isinstance(size, str) else "dim_value", size)


@pytest.mark.parametrize(("given", "result"), UNKNOWN)
def test_sizes_of_0_are_open_in_a_verification(
    given: list[int | str], result: list[int | str], tmp_path: Path
) -> None:
    """onnxruntime takes a 0 by its word; some exporters write it for an unknown size."""
    model = norms("(float[n, c, h, w] x) => (float[A, 4, B, C] y) { a = Conv(x, W)  y = BN(a, n) }")
    sizes_written(model, "x", given)
    sizes_written(model, "y", result)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="m.data")
    assert main(["fold", str(path), "-o", str(tmp_path / "o.onnx")]) == 0
    folded = onnx.load(tmp_path / "o.onnx")
    assert [n.op_type for n in folded.graph.node] == ["Conv"]
    assert folded.graph.input[0] == model.graph.input[0], "the file says what it said"
    assert main(["verify", str(path), str(tmp_path / "o.onnx")]) == 0


def test_a_model_in_memory_is_not_changed_by_that() -> None:
    model = norms("(float[n, c, h, w] x) => (float[A, 4, B, C] y) { a = Conv(x, W)  y = BN(a, n) }")
    sizes_written(model, "x", [0, 3, 8, 8])
    before = model.SerializeToString(deterministic=True)
    assert verify(model, model).passed
    assert model.SerializeToString(deterministic=True) == before
