"""The table: what is missing is named, what is inexact is refused, users add to it; opsets, If."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

torch = pytest.importorskip("torch")

from bnpass.errors import UnsupportedError  # noqa: E402
from bnpass.importer import ImportedNode, register_op, to_torch, write_back  # noqa: E402
from tests.importer.nets import ort_run, relative  # noqa: E402
from tests.importer.test_parameters import model, normal  # noqa: E402


def test_all_missing_operators_are_listed_at_once() -> None:
    proto = model(
        """(float[N, 4] x) => (float[N, 4] y) {
        a = com.example.Odd(x)  b = Relu(a)  c = com.example.Even(b)  y = com.example.Odd(c) }""",
        {},
    )
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 3))
    for node, name in zip(proto.graph.node, ("first", "relu", "second", "third"), strict=True):
        node.name = name
    with pytest.raises(UnsupportedError) as caught:
        to_torch(proto)
    for text in ("com.example::Odd (opset 3)", "'first'", "'third'", "Even", "'second'"):
        assert text in caught.value.message
    assert "register_op" in caught.value.hint


def test_every_inexact_node_is_named() -> None:
    proto = model(
        """(float[T, N, 4] x, float[1, 8, 4] W, float[1, 8, 2] R) => (float[T, 1, N, 2] y) {
        a = LSTM <hidden_size = 2, activations = ["Sigmoid", "Affine", "Tanh"]> (x, W, R)
        y = LSTM <hidden_size = 2, activations = ["Cosh", "Tanh", "Tanh"]> (x, W, R) }""",
        {},
    )
    with pytest.raises(UnsupportedError, match=r"LSTM 'a'.*LSTM 'y'"):
        to_torch(proto)


def test_a_user_adds_an_operator() -> None:
    @register_op("Twice", domain="com.example.test")
    def twice(op: ImportedNode) -> object:
        return op.call(torch.mul, op.tensor(0), op.attr("factor", 2.0))

    proto = model(
        """(float[N, 4] x) => (float[N, 4] y)
        { h = com.example.test.Twice <factor = 3.0> (x)  y = Relu(h) }""",
        {},
    )
    proto.opset_import.append(onnx.helper.make_opsetid("com.example.test", 1))
    x = torch.randn(2, 4)
    assert torch.equal(to_torch(proto, batch="keep")(x), torch.relu(3 * x))


def test_the_weight_of_a_users_operator_is_trained_and_written_back() -> None:
    @register_op("Scale", domain="com.example.test")
    def scale(op: ImportedNode) -> object:
        if op.attr("mode", "plain") != "plain":
            op.fail("only mode plain")
        return op.call(torch.mul, op.tensor(0), op.weight(1))

    text = """(float[N, 4] x) => (float[N, 4] y)
    { y = com.example.test.Scale <mode = "plain"> (x, factor) }"""
    proto = model(text, {"factor": normal(1)})
    proto.opset_import.append(onnx.helper.make_opsetid("com.example.test", 1))
    gm = to_torch(proto, batch="keep")
    assert [name for name, _ in gm.named_parameters()] == ["factor"]
    with torch.no_grad():
        gm.factor.fill_(5.0)
    trained = write_back(gm, proto)
    assert onnx.numpy_helper.to_array(trained.graph.initializer[0]).item() == 5.0
    proto.graph.node[0].attribute[0].s = b"other"
    with pytest.raises(UnsupportedError, match=r"Scale 'y' \(opset 1\): only mode plain"):
        to_torch(proto, batch="keep")


def test_a_sparse_initializer_is_trained_as_a_dense_one() -> None:
    proto = model("(float[N, 4] x) => (float[N, 3] y) { y = MatMul(x, W) }", {})
    dense = np.zeros((4, 3), np.float32)
    dense.reshape(-1)[[1, 5, 11]] = [1.0, -2.0, 0.5]
    values = onnx.numpy_helper.from_array(dense.reshape(-1)[[1, 5, 11]], "W")
    places = onnx.numpy_helper.from_array(np.array([1, 5, 11]))
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4, 3]))
    gm = to_torch(proto)
    assert torch.equal(gm.W.detach(), torch.from_numpy(dense))
    assert write_back(gm, proto).SerializeToString() == proto.SerializeToString()
    with torch.no_grad():
        gm.W.add_(1.0)
    trained = write_back(gm, proto)
    onnx.checker.check_model(trained)
    x = normal(2, 4)
    assert relative(gm(torch.from_numpy(x)), ort_run(trained, x)[0]) < 1e-6


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_every_opset(opset: int) -> None:
    proto = model(
        """(float[N, 3, 8, 8] x) => (float[N, 5] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, W, b)  r = Relu(c)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        f = Flatten(p)  g = Gemm(f, V, u)  y = Softmax(g) }""",
        {"W": normal(4, 3, 3, 3), "b": normal(4), "V": normal(64, 5), "u": normal(5)},
        ir=min(10, 8 if opset < 20 else 10),
        opset=opset,
    )
    x = normal(2, 3, 8, 8)
    made = to_torch(proto)(torch.from_numpy(x)).detach()
    assert made.sum(1).numpy() == pytest.approx(np.ones(2), abs=1e-5)
    if opset <= 23:  # what the installed onnxruntime is sure to load
        assert relative(made, ort_run(proto, x)[0]) < 1e-5


def test_an_if_on_a_static_shape_takes_its_branch() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[N, 1, H] x) => (float[N, H] y)
        <int64 one = {1}, int64[1] axis = {1}> {
            s = Shape(x)  d = Gather(s, one)  c = Equal(d, one)
            y = If (c) <
                then_branch = g1 () => (float[N, H] a) { a = Squeeze(x, axis) },
                else_branch = g2 () => (float[N, H] b) { b = Identity(x) }
            >
        }""")
    assert to_torch(proto)(torch.zeros(2, 1, 5)).shape == (2, 5)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    with pytest.raises(UnsupportedError, match="not the same in every run"):
        to_torch(proto)


@pytest.mark.parametrize(
    ("mode", "coordinates", "nearest"),
    [
        ("nearest", "half_pixel", "round_prefer_floor"), ("nearest", "asymmetric", "floor"),
        ("nearest", "asymmetric", "ceil"), ("nearest", "align_corners", "round_prefer_ceil"),
        ("linear", "half_pixel", "floor"), ("linear", "pytorch_half_pixel", "floor"),
        ("linear", "align_corners", "floor"), ("linear", "asymmetric", "floor"),
        ("cubic", "half_pixel", "floor"), ("cubic", "align_corners", "floor"),
        ("cubic", "asymmetric", "floor"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [(2.0, 2.0), (4.0, 3.0), (1.5, 1.3), (0.5, 0.7)])
def test_resize_agrees_with_onnxruntime(
    mode: str, coordinates: str, nearest: str, scale: tuple[float, float]
) -> None:
    proto = model(
        f"""(float[N, 2, 6, 7] x) => (float[N, 2, A, B] y)
        {{ y = Resize <mode = "{mode}", coordinate_transformation_mode = "{coordinates}",
        nearest_mode = "{nearest}"> (x, , scales) }}""",
        {"scales": np.array([1, 1, *scale], np.float32)},
    )
    x = normal(2, 2, 6, 7)
    gm = to_torch(proto, batch="keep").eval()
    assert not list(gm.parameters())
    assert relative(gm(torch.from_numpy(x)), ort_run(proto, x)[0]) < 1e-5


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
def test_recurrent_layers_agree_with_onnxruntime(kind: str, direction: str, lengths: bool) -> None:
    gates, d = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 1 + (direction == "bidirectional")
    weights = {"W": normal(d, gates * 5, 3), "R": normal(d, gates * 5, 5),
               "B": normal(d, gates * 10), "h0": normal(d, 4, 5)}  # fmt: skip
    if lengths:
        weights["lengths"] = np.array([6, 2, 1, 4], np.int32)
    proto = model(
        f"""(float[T, M, 3] x) => (float[T, D, M, 5] y, float[D, M, 5] h)
        {{ y, h = {kind} <hidden_size = 5, direction = "{direction}">
        (x, W, R, B, {"lengths" if lengths else ""}, h0) }}""",
        weights,
    )
    x = normal(6, 4, 3)
    made = to_torch(proto, batch="keep")(torch.from_numpy(x))
    for ours, theirs in zip(made, ort_run(proto, x), strict=True):
        assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("LSTM", "clip = 0.5"), ("LSTM", "clip = 0.5, input_forget = 1"), ("GRU", "clip = 0.5"),
        ("GRU", "clip = 0.5, linear_before_reset = 1"), ("RNN", "clip = 0.5"),
        ("RNN", 'activations = ["Elu"]'),
        ("RNN", 'activations = ["ThresholdedRelu"], activation_alpha = [0.3]'),
        ("LSTM", """activations = ["HardSigmoid", "ScaledTanh", "LeakyRelu"],
                 activation_alpha = [0.3, 0.6, 0.1], activation_beta = [0.4, 0.5]"""),
        ("RNN", 'activations = ["Affine"], activation_alpha = [0.1], activation_beta = [0.2]'),
        ("GRU", 'activations = ["HardSigmoid", "Elu"], activation_alpha = [0.3, 0.5]'),
    ],
)  # fmt: skip
def test_clipped_and_parametrised_cells_agree_with_onnxruntime(kind: str, attributes: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    weights = {"W": normal(1, gates * 5, 3), "R": normal(1, gates * 5, 5),
               "B": normal(1, gates * 10), "h0": normal(1, 4, 5), "c0": normal(1, 4, 5),
               "P": normal(1, 15)}  # fmt: skip
    proto = model(
        f"""(float[T, M, 3] x) => (float[T, D, M, 5] y)
        {{ y = {kind} <hidden_size = 5, {attributes}>
        (x, W, R, B, , h0{", c0, P" if kind == "LSTM" else ""}) }}""",
        weights,
    )
    x = normal(6, 4, 3)
    made = to_torch(proto, batch="keep")(torch.from_numpy(x))
    assert relative(made, ort_run(proto, x)[0]) < 1e-5
