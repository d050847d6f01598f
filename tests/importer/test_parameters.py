"""What becomes a parameter, where ties are kept or cut, and how it goes back by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from bnpass.errors import InputError  # noqa: E402
from bnpass.importer import to_torch, write_back  # noqa: E402
from bnpass.importer.modules import BatchNorm  # noqa: E402
from tests.importer.nets import ort_run, relative  # noqa: E402

RNG = np.random.default_rng(0)


def model(
    text: str, weights: Mapping[str, np.ndarray], ir: int = 8, opset: int = 17
) -> onnx.ModelProto:
    head = f'<ir_version: {ir}, opset_import: ["" : {opset}]>'
    made = onnx.parser.parse_model(f"{head} agraph {text}")
    made.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in weights.items())
    return made


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def initializers(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def norm(c: int, prefix: str = "") -> dict[str, np.ndarray]:
    return {
        f"{prefix}g": normal(c), f"{prefix}b": normal(c), f"{prefix}m": normal(c),
        f"{prefix}v": RNG.uniform(0.5, 2, c).astype(np.float32),
    }  # fmt: skip


def test_matmul_weights_and_add_biases_are_parameters() -> None:
    proto = model(
        "(float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, W)  s = Add(h, b) y = Mul(s, two) }",
        {"W": normal(4, 3), "b": normal(3), "two": np.float32(2.0)},
    )
    gm = to_torch(proto)
    assert {n for n, _ in gm.named_parameters()} == {"W", "b"}
    x = normal(5, 4)
    assert relative(gm(torch.from_numpy(x)), ort_run(proto, x)[0]) < 1e-6


def test_a_weight_that_is_used_twice_is_one_parameter() -> None:
    proto = model(
        "(float[N, 4] x) => (float[N, 4] y) { h = MatMul(x, W)  r = Relu(h) y = MatMul(r, W) }",
        {"W": normal(4, 4)},
    )
    gm = to_torch(proto)
    assert len(list(gm.parameters())) == 1
    with torch.no_grad():
        gm.W.mul_(2.0)
    trained = write_back(gm, proto)
    x = normal(2, 4)
    assert relative(gm(torch.from_numpy(x)), ort_run(trained, x)[0]) < 1e-6
    assert len(trained.graph.initializer) == 1


def test_an_identity_of_a_weight_is_a_weight_of_its_own() -> None:
    """torch's older exporter writes Identity for every tensor that equals another."""
    proto = model(
        """(float[N, 4] x) => (float[N, 4] y)
        { b2 = Identity(b)  h = Gemm(x, W, b)  r = Relu(h) y = Gemm(r, V, b2) }""",
        {"W": normal(4, 4), "V": normal(4, 4), "b": normal(4)},
    )
    gm = to_torch(proto)
    assert {n for n, _ in gm.named_parameters()} == {"W", "V", "b", "b2"}
    assert write_back(gm, proto).SerializeToString() == proto.SerializeToString()
    with torch.no_grad():
        gm.b.add_(1.0)  # b2 keeps its value, so it must not follow b
    trained = write_back(gm, proto)
    assert "Identity" not in {n.op_type for n in trained.graph.node}
    assert np.array_equal(initializers(trained)["b2"], initializers(proto)["b"])
    x = normal(3, 4)
    assert relative(gm(torch.from_numpy(x)), ort_run(trained, x)[0]) < 1e-6


def test_statistics_that_a_file_shares_are_kept_apart() -> None:
    """Two fresh BNs merged by a deduplicating exporter, one of them with a bias as its mean."""
    weights = norm(4) | {"W": normal(4, 4, 1, 1), "zero": np.zeros(4, np.float32)}
    proto = model(
        """(float[N, 4, H, H] x) => (float[N, 4, H, H] y) {
        c = Conv(x, W, zero)  n = BatchNormalization(c, g, b, zero, v)
        r = Relu(n)  y = BatchNormalization(r, h, b, zero, v) }""",
        weights | {"h": normal(4)},
    )
    gm = to_torch(proto)
    gm.train()(torch.randn(6, 4, 5, 5))
    trained = write_back(gm, proto)
    onnx.checker.check_model(trained)
    assert np.array_equal(initializers(trained)["zero"], weights["zero"])
    x = normal(2, 4, 5, 5)
    assert relative(gm.eval()(torch.from_numpy(x)), ort_run(trained, x)[0]) < 1e-5
    again = to_torch(trained).state_dict()
    means = [v for k, v in again.items() if k.endswith("running_mean")]
    assert not torch.equal(*means)


def test_a_norm_that_is_called_twice_is_one_layer() -> None:
    proto = model(
        """(float[N, 4] x) => (float[N, 4] y) {
        n = BatchNormalization(x, g, b, m, v)  r = Relu(n)  y = BatchNormalization(r, g, b, m, v)
        }""",
        norm(4),
    )
    gm = to_torch(proto)
    assert sum(isinstance(m, BatchNorm) for m in gm.modules()) == 1
    gm.train()(torch.randn(6, 4))
    trained = write_back(gm, proto)
    assert set(initializers(trained)) == set("gbmv")
    x = normal(2, 4)
    assert relative(gm.eval()(torch.from_numpy(x)), ort_run(trained, x)[0]) < 1e-5


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_batch_norm_of_every_rank_trains_as_torch_does(rank: int) -> None:
    shape = ", ".join(["N", "4", "A", "B", "C"][:rank])
    proto = model(
        f"(float[{shape}] x) => (float[{shape}] y) "
        "{ y = BatchNormalization <momentum = 0.8, epsilon = 0.001> (x, g, b, m, v) }",
        norm(4),
    )
    gm = to_torch(proto)
    layer = next(m for m in gm.modules() if isinstance(m, BatchNorm))
    assert layer.momentum == pytest.approx(0.2)
    assert layer.eps == pytest.approx(1e-3)
    assert {n.rpartition(".")[2] for n, _ in gm.named_parameters()} == {"weight", "bias"}
    x = torch.randn(6, 4, 3, 2, 5)[(..., *[0] * (5 - rank))]
    assert relative(gm.eval()(x), ort_run(proto, x.numpy())[0]) < 1e-5
    mean = layer.running_mean.clone()
    gm.train()(x)
    dims = [d for d in range(rank) if d != 1]
    assert torch.allclose(layer.running_mean, 0.8 * mean + 0.2 * x.mean(dims), atol=1e-6)


def test_batch_norm_names_of_torch_are_kept() -> None:
    names = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    weights = dict(zip(names, norm(4).values(), strict=True))
    proto = model("(float[N, 4] x) => (float[N, 4] y) { y = Identity(x) }", weights)
    node = onnx.helper.make_node("BatchNormalization", ["x", *names], ["y"], name="first")
    proto.graph.node[0].CopyFrom(node)
    assert set(names) <= set(to_torch(proto).state_dict())


def test_training_mode_stays_a_function_of_the_batch() -> None:
    proto = model(
        """(float[N, 4] x) => (float[N, 4] y)
        { y, m2, v2 = BatchNormalization <training_mode = 1> (x, g, b, m, v) }""",
        norm(4),
    )
    gm = to_torch(proto)
    x = torch.randn(8, 4)
    wanted = ort_run(proto, x.numpy())[0]
    assert relative(gm.eval()(x), wanted) < 1e-5
    assert relative(gm.train()(x), wanted) < 1e-5
    assert {n for n, _ in gm.named_parameters()} == {"g", "b"}
    assert "m" not in dict(gm.named_parameters())


def test_dropout_drops_in_train_mode_only() -> None:
    proto = model("(float[N, 100] x) => (float[N, 100] y) { y = Dropout(x) }", {})
    gm = to_torch(proto)
    x = torch.ones(4, 100)
    assert torch.equal(gm.eval()(x), x)
    assert set(gm.train()(x).unique().tolist()) == {0.0, 2.0}


def test_unfriendly_names_work() -> None:
    weights = {"in": normal(4, 4), "a/b:0": normal(4), "1.weight": normal(4, 4), "1": normal(4),
               "train": normal(4)}  # fmt: skip
    proto = model("(float[N, 4] x) => (float[N, 4] y) { y = Identity(x) }", weights)
    del proto.graph.node[:]
    chain = [("MatMul", "in"), ("Add", "a/b:0"), ("MatMul", "1.weight"), ("Add", "1"),
             ("Add", "train")]  # fmt: skip
    proto.graph.input[0].name = value = "class"
    for position, (op_type, name) in enumerate(chain):
        made = "y" if name == "train" else f"def {position}"
        proto.graph.node.append(onnx.helper.make_node(op_type, [value, name], [made]))
        value = made
    gm = to_torch(proto)
    x = normal(3, 4)
    assert relative(gm(torch.from_numpy(x)), ort_run(proto, x)[0]) < 1e-5
    assert write_back(gm, proto).SerializeToString() == proto.SerializeToString()


def test_a_copy_and_a_loaded_state_write_back() -> None:
    proto = model(
        "(float[N, 4] x) => (float[N, 4] y) { n = BatchNormalization(x, g, b, m, v) y = Relu(n) }",
        norm(4),
    )
    gm = to_torch(proto)
    twin = copy.deepcopy(gm)
    with torch.no_grad():
        gm.g.weight.fill_(3.0)
    twin.load_state_dict(gm.state_dict())
    assert np.all(initializers(write_back(twin, proto))["g"] == 3.0)


def test_half_precision_keeps_its_type() -> None:
    proto = model(
        "(float16[N, 4] x) => (float16[N, 4] y) { y = MatMul(x, W) }",
        {"W": normal(4, 4).astype(np.float16)},
    )
    gm = to_torch(proto)
    with torch.no_grad():
        gm.W.mul_(2)
    assert initializers(write_back(gm, proto))["W"].dtype == np.float16


def test_external_data_goes_in_and_out(tmp_path: Path) -> None:
    text = "(float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, W) }"
    proto = model(text, {"W": normal(64, 64)})
    path = tmp_path / "model.onnx"
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    onnx.save(twin, path, save_as_external_data=True, size_threshold=0, location="data")
    gm = to_torch(path)
    x = normal(2, 64)
    assert relative(gm(torch.from_numpy(x)), ort_run(proto, x)[0]) < 1e-5
    with torch.no_grad():
        gm.W.neg_()
    assert np.array_equal(initializers(write_back(gm, path))["W"], -initializers(proto)["W"])


def test_initializers_listed_as_inputs_are_constants() -> None:
    proto = model(
        "(float[N, 4] x, float[4, 4] W) => (float[N, 4] y) { y = MatMul(x, W) }",
        {"W": normal(4, 4)}, ir=3, opset=8,
    )  # fmt: skip
    gm = to_torch(proto)
    assert [n.target for n in gm.graph.nodes if n.op == "placeholder"] == ["x"]


def test_the_wrong_model_is_refused() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, W) }"
    gm = to_torch(model(text, {"W": normal(4, 4)}))
    with pytest.raises(InputError, match="'W' is float32"):
        write_back(gm, model(text, {"W": normal(4, 5)}))
    with pytest.raises(InputError, match="no tensor 'W'"):
        write_back(gm, model(text.replace("W", "V"), {"V": normal(4, 4)}))


@pytest.mark.parametrize("momentum", [0.9, 1.0])
def test_batch_norm_is_torchs_to_the_last_bit(momentum: float) -> None:
    proto = model(
        f"""(float[N, 4, H, H] x) => (float[N, 4, H, H] y)
        {{ y = BatchNormalization <momentum = {momentum}> (x, g, b, m, v) }}""",
        norm(4),
    )
    ours = next(m for m in to_torch(proto).modules() if isinstance(m, BatchNorm))
    theirs = torch.nn.BatchNorm2d(4, ours.eps, ours.momentum)
    theirs.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        x = torch.randn(6, 4, 5, 5)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        made = [m.train(training)(i) for m, i in zip((ours, theirs), inputs, strict=True)]
        for y in made:
            y.square().sum().backward()
        assert torch.equal(*made)
        assert torch.equal(*(i.grad for i in inputs))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    with pytest.raises(ValueError, match="rank 2"):
        ours.train()(torch.randn(4))


def test_a_number_that_steers_an_operator_is_not_trained_elsewhere() -> None:
    """The exponent of Pow is a bias of Gemm, too: the file holds it once."""
    proto = model(
        """(float[N, 4] x) => (float[N, 3] y)
        { p = Pow(x, k)  g = Gemm(p, W, k)  y = Clip(g, , k) }""",
        {"W": normal(4, 3), "k": np.float32(2.0)},
    )
    gm = to_torch(proto)
    assert {n for n, p in gm.named_parameters() if p.requires_grad} == {"W"}
    x = normal(5, 4)
    gm(torch.from_numpy(x)).sum().backward()
    torch.optim.SGD(gm.parameters(), lr=0.1).step()
    trained = write_back(gm, proto)
    assert initializers(trained)["k"] == 2.0
    assert relative(gm(torch.from_numpy(x)), ort_run(trained, x)[0]) < 1e-6


def test_a_copy_of_a_weight_that_is_no_weight_keeps_its_value() -> None:
    """An Identity of a trained weight as a divisor, which is not trained."""
    proto = model(
        """(float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
        { c = Identity(w)  d = Identity(c)  a = Mul(x, w)  y = Div(a, d)  z = Add(y, c) }""",
        {"w": RNG.uniform(1, 2, 4).astype(np.float32)},
    )
    gm = to_torch(proto)
    x = normal(5, 4)
    with torch.no_grad():
        gm.w.mul_(3.0)
    trained = write_back(gm, proto)
    onnx.checker.check_model(trained)
    for ours, theirs in zip(gm(torch.from_numpy(x)), ort_run(trained, x), strict=True):
        assert relative(ours, theirs) < 1e-6
    assert write_back(to_torch(trained), trained).SerializeToString() == (
        trained.SerializeToString()
    )
