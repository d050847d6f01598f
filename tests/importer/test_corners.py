"""Corners of operators where onnxruntime, the standard and torch part ways."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from bnpass.errors import InputError, UnsupportedError  # noqa: E402
from bnpass.importer import ImportedNode, register_op, to_torch  # noqa: E402
from bnpass.importer.functions import shape  # noqa: E402
from tests.importer.nets import ort_run, relative  # noqa: E402
from tests.importer.test_parameters import model, normal  # noqa: E402


def check(
    proto: onnx.ModelProto, *inputs: np.ndarray, tolerance: float = 1e-5
) -> torch.fx.GraphModule:
    gm = to_torch(proto, batch="keep").eval()
    with torch.no_grad():
        made = gm(*map(torch.from_numpy, inputs))
    for ours, theirs in zip(
        made if isinstance(made, tuple) else (made,), ort_run(proto, *inputs), strict=True
    ):
        assert ours.shape == theirs.shape
        assert not theirs.size or relative(ours, theirs) < tolerance
    return gm


LARGER, SMALLER = [(10, 1.3), (20, 3.3), (3, 1.1)], [(10, 0.7), (7, 0.7)]


@pytest.mark.parametrize(
    ("opset", "size", "scale"),
    [(o, *s) for o in (8, 9, 10, 11, 19) for s in LARGER + SMALLER * (o > 9)],  # Upsample grows
)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_sizes_and_places_of_fractional_scales(
    opset: int, size: int, scale: float, mode: str
) -> None:
    """Sizes are products in float32; before opset 11 nearest rounds up where an axis shrinks."""
    kind = f'Upsample <mode = "{mode}"' if opset < 10 else f'Resize <mode = "{mode}"'
    attribute = f", scales = [1.0, 1.0, {scale}, {scale}]" if opset < 9 else ""
    inputs = {8: "x", 9: "x, s", 10: "x, s"}.get(opset, "x, r, s")
    given = {"s": np.array([1, 1, scale, scale], np.float32), "r": np.zeros(0, np.float32)}
    proto = model(
        f"(float[N, 2, H, W] x) => (float[N, 2, A, B] y) {{ y = {kind}{attribute}> ({inputs}) }}",
        {name: value for name, value in given.items() if name in inputs.split(", ")},
        opset=opset,
    )
    check(proto, normal(2, 2, size, size))


def test_a_resize_of_nothing() -> None:
    proto = model(
        """(float[N, 2, H, W] x) => (float[A, B, C, D] y)
        { s = Shape(x)  y = Resize <mode = "nearest"> (x, , , s) }""",
        {},
    )
    check(proto, normal(0, 2, 3, 4))


@pytest.mark.parametrize(
    "attributes",
    [
        'auto_pad = "SAME_UPPER", strides = [3, 3]', 'auto_pad = "SAME_LOWER", strides = [3, 1]',
        'auto_pad = "SAME_UPPER", strides = [4, 3], output_padding = [1, 0]',
        "strides = [3, 3], output_shape = [18, 19]", "strides = [3, 3], output_shape = [17, 15]",
        'auto_pad = "SAME_UPPER", strides = [3, 3], output_shape = [18, 15]',
        "pads = [1, 0, 0, 2], strides = [2, 2], output_padding = [1, 0]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kernel", [(1, 2), (2, 2), (3, 4)])
def test_sizes_of_transposed_convolutions(attributes: str, kernel: tuple[int, int]) -> None:
    """auto_pad makes nothing larger; what output_shape adds lies at the ends."""
    proto = model(
        f"(float[N, 2, 6, 6] x) => (float[N, 3, A, B] y) "
        f"{{ y = ConvTranspose <{attributes}> (x, W, b) }}",
        {"W": normal(2, 3, *kernel), "b": normal(3)},
    )
    check(proto, normal(2, 2, 6, 6))


def test_an_output_shape_out_of_reach_is_refused() -> None:
    """onnxruntime's values are wrong from there on."""
    proto = model(
        """(float[N, 2, 6] x) => (float[N, 3, A] y)
        { y = ConvTranspose <strides = [3], output_shape = [20]> (x, W) }""",
        {"W": normal(2, 3, 2)},
    )
    with pytest.raises(InputError, match="a stride or more beyond"):
        to_torch(proto)(torch.zeros(2, 2, 6))


@pytest.mark.parametrize(
    ("node", "opset", "why"),
    [
        ('MaxPool <auto_pad = "SAME_UPPER", dilations = [2], kernel_shape = [2]>', 20, "dilations"),
        ('AveragePool <auto_pad = "SAME_LOWER", kernel_shape = [1], strides = [3]>', 20, "strides"),
        ('LpPool <auto_pad = "SAME_UPPER", kernel_shape = [2], strides = [4]>', 18, "strides"),
    ],
)
def test_pools_that_onnxruntime_pads_in_its_own_way_are_refused(
    node: str, opset: int, why: str
) -> None:
    proto = model(f"(float[N, 2, 7] x) => (float[N, 2, A] y) {{ y = {node} (x) }}", {}, opset=opset)
    with pytest.raises(UnsupportedError, match=f"auto_pad with {why}"):
        to_torch(proto)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pools_with_gaps(kind: str) -> None:
    proto = model(
        f"""(float[N, 2, 7] x) => (float[N, 2, A] y)
        {{ y = {kind} <auto_pad = "SAME_UPPER", kernel_shape = [1], strides = [3]> (x) }}""",
        {},
    )
    check(proto, normal(2, 2, 7))


@pytest.mark.parametrize("dims", [(4,), (2, 3), (2, 3, 4)])
def test_flatten_of_any_rank(dims: tuple[int, ...]) -> None:
    names = ", ".join("NHW"[: len(dims)])
    check(model(f"(float[{names}] x) => (float[A, B] y) {{ y = Flatten(x) }}", {}), normal(*dims))


def test_a_scalar_transposed() -> None:
    check(model("(float x) => (float y) { y = Transpose(x) }", {}), normal())


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1, -(2**63), -1, 0])
@pytest.mark.parametrize("step", [-1, -2])
def test_slices_backwards(end: int, step: int) -> None:
    """To the largest int is to the very front for onnxruntime."""
    numbers = {"a": [3], "b": [end], "c": [0], "d": [step]}
    proto = model(
        "(float[N, 2] x) => (float[A, 2] y) { y = Slice(x, a, b, c, d) }",
        {name: np.array(value) for name, value in numbers.items()},
    )
    check(proto, normal(6, 2))


@pytest.mark.parametrize(
    "node", ["InstanceNormalization", "GroupNormalization <num_groups = 3>"]
)
@pytest.mark.parametrize("size", [1, 4])
def test_norms_of_single_elements(node: str, size: int) -> None:
    proto = model(
        f"(float[N, 3, H] x) => (float[N, 3, H] y) {{ y = {node} (x, s, b) }}",
        {"s": normal(3), "b": normal(3)},
        opset=21, ir=10,
    )  # fmt: skip
    gm = check(proto, normal(1, 3, size), tolerance=1e-3 if size == 1 else 1e-5)
    gm.train()(torch.randn(2, 3, size)).sum().backward()
    assert all(p.grad is not None for p in gm.parameters())


def test_a_norm_in_training_mode_of_single_elements() -> None:
    proto = model(
        """(float[N, 3] x) => (float[N, 3] y, float[3] m, float[3] v)
        { y, m, v = BatchNormalization <training_mode = 1> (x, s, b, mean, var) }""",
        {"s": normal(3), "b": normal(3), "mean": normal(3), "var": np.ones(3, np.float32)},
    )
    gm = to_torch(proto)
    for mode in (True, False):
        y, _, _ = gm.train(mode)(torch.randn(1, 3))
        assert torch.allclose(y[0], gm.b, atol=1e-3)


def test_the_largest_of_nothing() -> None:
    proto = model("(float[N, 3] x) => (float[N, 3] y) { y = Hardmax <axis = 1> (x) }", {})
    assert to_torch(proto)(torch.zeros(0, 3)).shape == (0, 3)


def test_products_behind_an_operator_whose_type_is_not_known() -> None:
    """They are no products of integers."""

    @register_op("Half", domain="com.example.types")
    def half(op: ImportedNode) -> object:
        return op.call(torch.mul, op.tensor(0), 0.5)

    proto = model(
        """(float[N, 4] x) => (float[N, 4] p, float[N, 3] q, float[N, N] r, float[A, B] s) {
        h = com.example.types.Half(x)  p = MatMul(h, W)  q = Gemm <alpha = 0.5> (h, V)
        t = Transpose(h)  k = com.example.types.Half(t)  r = MatMul(h, k)
        f = com.example.types.Half(v)  s = Pad(h, n, f) }""",
        {"W": normal(4, 4), "V": normal(4, 3), "n": np.array([0, 1, 0, 0]), "v": np.float32(3.0)},
    )
    proto.opset_import.append(onnx.helper.make_opsetid("com.example.types", 1))
    gm = to_torch(proto, batch="keep")
    x = torch.randn(2, 4)
    p, q, r, s = gm(x)
    assert torch.allclose(p, x / 2 @ gm.W)
    assert torch.allclose(q, x / 4 @ gm.V)
    assert torch.allclose(r, x / 2 @ x.T / 4)
    assert torch.equal(s[:, 0], torch.full((2,), 1.5))


def test_an_identity_matrix_has_the_type_of_its_input() -> None:
    proto = model("(double[N, 4] x) => (double[N, 4] y) { y = EyeLike(x) }", {})
    assert to_torch(proto)(torch.zeros(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_an_operator_that_fails_on_its_constants_is_named() -> None:
    proto = model(
        """(float[N, 4] x) => (float[N, 4] y, int64[2] a, int64[1] b) {
        y = Relu(x)  a = Reshape(c, t)  s = Shape(x)  n = Gather(s, z)
        m = Concat <axis = 0> (n, one)  b = Div(m, z) }""",
        {"c": np.arange(3), "t": np.array([2]), "z": np.array([0]), "one": np.array([1])},
    )
    with pytest.raises(UnsupportedError, match=r"Reshape 'a'.*fails on its constants.*Div 'b'"):
        to_torch(proto)


def test_the_shape_of_a_filled_tensor_is_not_made_to_be_measured() -> None:
    proto = model(
        """(float[N, 6] x) => (float[A, 3] y) {
        s = Shape(x)  f = ConstantOfShape(s)  g = Shape(f)  n = Gather(g, zeros)
        t = Concat <axis = 0> (n, rest, three)  r = Reshape(x, t)  y = ReduceSum(r, one) }""",
        {"zeros": np.zeros(1, np.int64), "rest": np.array([-1]), "three": np.array([3]),
         "one": np.ones(1, np.int64)},
    )  # fmt: skip
    proto.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["A", 1, 3])
    )
    gm = check(proto, normal(2, 6))
    assert shape.full not in {node.target for node in gm.graph.nodes}


def test_a_weight_of_one_number_behind_a_filled_tensor_is_trained() -> None:
    """What comes from sizes alone stays on the CPU; its weights are parameters like any other."""
    proto = model(
        """(float[N, 6, H] x) => (float[A, B, C] y) {
        s = Shape(x)  n = Slice(s, zeros, one)  t = Concat <axis = 0> (n, one, six)
        f = ConstantOfShape <value = float[1] {2.0}> (t)  y = Conv(f, W, b) }""",
        {"W": normal(1, 1, 1), "b": normal(1), "zeros": np.array([0]), "one": np.array([1]),
         "six": np.array([6])},
    )  # fmt: skip
    gm = check(proto, normal(2, 6, 3))
    assert {name for name, _ in gm.named_parameters()} == {"W", "b"}
