"""Weights of recurrent layers: gates in torch's order in the module, in ONNX's in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402

import bnpass  # noqa: E402
from bnpass.importer import ImportedNode, register_op, registry, to_torch, write_back  # noqa: E402
from bnpass.importer.gates import arranged  # noqa: E402
from tests.importer.nets import export, ort_run, relative, take_one_step  # noqa: E402
from tests.importer.test_parameters import initializers, model, normal  # noqa: E402

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
GRU = "linear_before_reset = 1,"


def weights(kind: str, directions: int = 1, size: int = 3) -> dict[str, np.ndarray]:
    rows = GATES[kind] * 5
    return {"W": normal(directions, rows, size), "R": normal(directions, rows, 5),
            "B": normal(directions, 2 * rows)}  # fmt: skip


def layer(
    kind: str, out: str = "y", given: str = "x, W, R, B", direction: str = "forward",
    extra: str = "",
) -> str:  # fmt: skip
    late = GRU if kind == "GRU" else ""
    return f'{out} = {kind} <hidden_size = 5, {late} {extra} direction = "{direction}"> ({given})'


def check(proto: onnx.ModelProto, x: np.ndarray | None = None) -> torch.fx.GraphModule:
    """Equal to onnxruntime as it comes, unchanged when written back, equal again when trained."""
    x = normal(6, 4, 3) if x is None else x
    gm = to_torch(proto, batch="keep").eval()
    assert relative(gm(torch.from_numpy(x)), ort_run(proto, x)[0]) < 1e-5
    assert write_back(gm, proto).SerializeToString() == proto.SerializeToString()
    take_one_step(gm, torch.from_numpy(x))
    trained = write_back(gm, proto)
    onnx.checker.check_model(trained)
    assert relative(gm(torch.from_numpy(x)), ort_run(trained, x)[0]) < 1e-4
    again = to_torch(trained, batch="keep").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in gm.state_dict().items())
    return gm


def reordered(gm: torch.fx.GraphModule) -> int:
    """How many weights are put in order whenever the module runs."""
    return sum(node.target is arranged for node in gm.graph.nodes)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_weights_go_back_as_they_came(kind: str, direction: str) -> None:
    directions = 1 + (direction == "bidirectional")
    text = layer(kind, direction=direction)
    gm = check(model(f"(float[T, N, 3] x) => (float[T, D, N, 5] y) {{ {text} }}",
                     weights(kind, directions)))  # fmt: skip
    assert {n: tuple(p.shape) for n, p in gm.named_parameters()} == {
        n: v.shape for n, v in weights(kind, directions).items()
    }
    assert reordered(gm) == 0


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_without_a_bias(kind: str) -> None:
    values = weights(kind)
    del values["B"]
    text = layer(kind, given="x, W, R")
    check(model(f"(float[T, N, 3] x) => (float[T, D, N, 5] y) {{ {text} }}", values))


@pytest.mark.parametrize(("kind", "names"), [
    ("RNN", "Relu"), ("RNN", "Tanh"), ("RNN", "Elu"),
    ("GRU", "Sigmoid Tanh"), ("GRU", "HardSigmoid Relu"),
    ("LSTM", "Sigmoid Tanh Tanh"), ("LSTM", "sigmoid Softsign RELU"),
])  # fmt: skip
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_activations_named_as_exporters_write_them(kind: str, names: str, direction: str) -> None:
    """Capitals mean nothing; both of torch's kernels and the loop over time read them."""
    directions = 1 + (direction == "bidirectional")
    listed = ", ".join(f'"{name}"' for name in names.split() * directions)
    text = layer(kind, direction=direction, extra=f"activations = [{listed}],")
    check(model(f"(float[T, N, 3] x) => (float[T, D, N, 5] y) {{ {text} }}",
                weights(kind, directions)))  # fmt: skip


def test_a_weight_that_another_operator_reads_stays_in_the_order_of_the_file() -> None:
    gm = check(model(
        f"""(float[T, N, 3] x) => (float[T, N, 5] y) {{
        {layer("LSTM", "a")}  h = Squeeze(a, one)
        row = Slice(W, zero, one, one)  s = ReduceSum <keepdims = 0> (row)  y = Mul(h, s) }}""",
        weights("LSTM") | {"zero": np.zeros(1, np.int64), "one": np.ones(1, np.int64)},
    ))  # fmt: skip
    assert reordered(gm) == 1
    assert len(list(gm.parameters())) == 3


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [("", "", 0), ("", "clip = 0.5,", 3), ("", "input_forget = 1,", 3), ("clip = 0.5,", "", 3)],
)
def test_two_layers_share_their_weights(first: str, second: str, count: int) -> None:
    """Both by torch's kernel, or one by it and one by the loop, which wants the file's order."""
    gm = check(model(
        f"""(float[T, N, 3] x) => (float[T, 1, N, 5] y) {{
        {layer("LSTM", "a", extra=first)}  r = Neg(x)
        {layer("LSTM", "b", "r, W, R, B", extra=second)}  y = Sub(a, b) }}""",
        weights("LSTM"),
    ))  # fmt: skip
    assert reordered(gm) == count
    assert len(list(gm.parameters())) == 3


def test_one_weight_for_input_and_state() -> None:
    values = weights("LSTM", size=5)
    del values["R"]
    gm = check(model(
        f"(float[T, N, 5] x) => (float[T, 1, N, 5] y) {{ {layer('LSTM', given='x, W, W, B')} }}",
        values), normal(4, 2, 5))  # fmt: skip
    assert {n for n, _ in gm.named_parameters()} == {"W", "B"}


def test_an_identity_of_a_weight_is_put_in_order_too() -> None:
    gm = check(model(
        f"""(float[T, N, 3] x) => (float[T, 1, N, 5] y) {{
        W2 = Identity(W)  {layer("LSTM", "a")}  r = Neg(x)
        {layer("LSTM", "b", "r, W2, R, B")}  c = Sub(a, b)
        W3 = Identity(W2)  s = ReduceSum <keepdims = 0> (W3)  y = Mul(c, s) }}""",
        weights("LSTM"),
    ))  # fmt: skip
    assert {n for n, _ in gm.named_parameters()} == {"W", "W2", "W3", "R", "B"}
    assert reordered(gm) == 0


def test_a_weight_that_is_an_output_keeps_the_order_of_the_file() -> None:
    text = f"(float[T, N, 3] x) => (float[T, D, N, 5] y, float[1, 20, 3] W) {{ {layer('LSTM')} }}"
    proto = model(text, weights("LSTM"))
    gm = to_torch(proto, batch="keep")
    x = normal(2, 1, 3)
    for ours, theirs in zip(gm(torch.from_numpy(x)), ort_run(proto, x), strict=True):
        assert relative(ours, theirs) < 1e-5


def test_weights_that_an_if_reads() -> None:
    proto = model(
        f"""(float[T, N, 3] x) => (float[T, 1, N, 5] y) <bool yes = {{1}}> {{
        {layer("LSTM", "a")}
        y = If (yes) <
            then_branch = g1 () => (float[T, 1, N, 5] b) {{
                r = Neg(x)  {layer("LSTM", "c", "r, W, R, B")}  b = Sub(a, c) }},
            else_branch = g2 () => (float[T, 1, N, 5] d) {{ d = Identity(a) }}
        > }}""",
        weights("LSTM"),
    )
    assert reordered(check(proto)) == 0


def test_a_users_lstm_gets_the_order_of_the_file() -> None:
    seen = []

    def mine(op: ImportedNode) -> object:
        seen.append(op.const(1))
        return op.call(torch.neg, op.tensor(0))

    proto = model(f"(float[T, N, 3] x) => (float[T, D, N, 5] y) {{ {layer('LSTM')} }}",
                  weights("LSTM"))  # fmt: skip
    register_op("LSTM")(mine)
    try:
        to_torch(proto, batch="keep")
    finally:
        registry._TABLE["", "LSTM"].pop(0)
    assert np.array_equal(seen[0].numpy(), initializers(proto)["W"])


def test_external_data(tmp_path: Path) -> None:
    proto = model(f"(float[T, N, 3] x) => (float[T, D, N, 5] y) {{ {layer('LSTM')} }}",
                  weights("LSTM"))  # fmt: skip
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    path = tmp_path / "model.onnx"
    onnx.save(twin, path, save_as_external_data=True, size_threshold=0, location="data")
    gm = to_torch(path, batch="keep")
    assert torch.equal(gm.W, to_torch(proto, batch="keep").W)
    assert initializers(write_back(gm, path)).keys() == initializers(proto).keys()
    for name, value in initializers(write_back(gm, path)).items():
        assert np.array_equal(value, initializers(proto)[name])


class Layer(nn.Module):
    def __init__(self, kind: str, *, both: bool) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 5, num_layers=2, bidirectional=both, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("dynamo", [False, True])
def test_exports_have_the_parameters_of_torchs_module(kind: str, both: bool, dynamo: bool) -> None:
    """The slices that an exporter writes behind them, and the zeros in front, are not computed."""
    module = Layer(kind, both=both).eval()
    x = torch.randn(2, 6, 3)
    gm = to_torch(export(module, x, 18 if dynamo else 17, dynamo=dynamo, free=True)).eval()
    assert {n for n, _ in gm.named_parameters()} == {n for n, _ in module.named_parameters()}
    targets = [node.target for node in gm.graph.nodes]
    assert torch.cat not in targets
    assert reordered(gm) == 0
    gm.load_state_dict(Layer(kind, both=both).state_dict())
    gm.load_state_dict(module.state_dict())
    wide = torch.randn(3, 4, 3)
    assert torch.equal(gm(x), module(x)) or relative(gm(x), module(x).detach().numpy()) < 1e-6
    if dynamo:  # the older exporter writes the length down
        assert relative(gm(wide), module(wide).detach().numpy()) < 1e-6


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("loop", [False, True])
def test_of_what_insert_adds_only_batch_norms_are_trained(kind, direction, loop):
    extra = "clip = 9.0," if loop else ""
    text = layer(kind, "z", direction=direction, extra=extra)
    ds = 2 if direction == "bidirectional" else 1
    plain = model(f"(float[T,N,3] x) => (float[T,D,N,5] y) {{ {text} y = Mul(z, t) }}",
                  {**weights(kind, ds), "t": normal(5)})  # fmt: skip
    inserted = bnpass.insert(plain, last=True)
    gm = to_torch(inserted, batch="keep")
    old, norm = to_torch(plain, batch="keep"), 2 * ds * GATES[kind] * 5
    size = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    half = GATES[kind] * 5 * ds  # Wb, dropped; a state bias holds its zeros
    assert size(gm) - norm - half <= size(old) - half
    before = {n: v.clone() for n, v in gm.state_dict().items()}
    take_one_step(gm, torch.from_numpy(normal(6, 4, 3)))
    trained = write_back(gm, inserted)
    arrays = {t.name: numpy_helper.to_array(t) for t in trained.graph.initializer}
    identity = next(a for n, a in arrays.items() if n.endswith("identity"))
    assert (identity.reshape(half, half) == np.eye(half)).all()
    bias = next(a for n, a in arrays.items() if n.endswith("state_bias"))
    assert not bias[:, : bias.shape[1] // 2].any() and bias.any()
    assert any(not torch.equal(v, before[n]) for n, v in gm.state_dict().items())
    deployed = bnpass.fold(trained)
    assert [n.op_type for n in deployed.graph.node] == [kind, "Mul"]


@pytest.mark.parametrize(("W", "trained"), [(np.eye(5), False), (np.eye(5) + 1e-3, True)])
def test_only_an_exact_identity_behind_a_product_is_no_weight(W: np.ndarray, trained: bool) -> None:
    arrays = {**weights("RNN", 1, 5), "W": W[np.newaxis].astype(np.float32), "p": normal(3, 5)}
    head = "(float[T,N,3] x) => (float[T,D,N,5] y)"
    behind = model(f"{head} {{ c = MatMul(x, p) {layer('RNN', given='c, W, R, B')} }}", arrays)
    assert ("W" in dict(to_torch(behind).named_parameters())) is trained
    alone = model(f"{head.replace('3]', '5]')} {{ {layer('RNN')} }}", arrays)
    assert "W" in dict(to_torch(alone).named_parameters())
