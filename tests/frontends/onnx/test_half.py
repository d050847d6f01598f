"""Half-precision models: valid for onnx, equal to rounding, float32 where that must stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import bnpass
from bnpass.errors import RefusedError, UnsupportedError, UsageError, VerificationError
from bnpass.frontends.onnx.half import to_half
from bnpass.runtime.verify import verify

RNG = np.random.default_rng(3)


def model(body: str, opset: int = 17, ir: int = 8, **weights: np.ndarray) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> {body}')
    for name, array in weights.items():
        parsed.graph.initializer.append(numpy_helper.from_array(array, name))
    for index, node in enumerate(parsed.graph.node):
        node.name = node.name or f"{node.op_type}{index}"
    return parsed


def f32(*shape: int, scale: float = 0.3) -> np.ndarray:
    return (scale * RNG.normal(size=shape)).astype(np.float32)


def copy_of(source: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    return copy


def narrowed(source: onnx.ModelProto, to: str = "fp16", **options: bool):
    result = to_half(copy_of(source), to, **options)
    onnx.checker.check_model(result.model, full_check=True)
    return result


def kinds(source: onnx.ModelProto) -> dict[str, int]:
    return {t.name: t.data_type for t in source.graph.initializer}


def agree(a: onnx.ModelProto, b: onnx.ModelProto, rtol: float = 5e-3) -> None:
    report = verify(a, b, rtol=rtol, atol=1e-3)
    assert report.passed, report.to_dict()
    assert not np.isnan(max(c.max_abs for c in report.outputs.values()))


CONV = model(
    """g (float[N,3,8,8] x) => (float[N,4] y) {
        c = Conv <pads=[1,1,1,1]> (x, W, b)  r = Relu(c)  p = GlobalAveragePool(r)
        f = Flatten(p)  y = Gemm <transB=1> (f, V) }""",
    W=f32(4, 3, 3, 3), b=f32(4), V=f32(4, 4),
)  # fmt: skip


def test_weights_and_arithmetic_are_half_and_the_surface_stays():
    result = narrowed(CONV)
    assert set(kinds(result.model).values()) == {TensorProto.FLOAT16}
    assert [n.op_type for n in result.model.graph.node].count("Cast") == 2
    assert [i.name for i in result.model.graph.input] == ["x"]
    for value in (*result.model.graph.input, *result.model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert result.kept == {}
    agree(CONV, result.model)


def test_each_weight_is_the_nearest_half():
    found = narrowed(CONV).model.graph.initializer
    for before, after in zip(CONV.graph.initializer, found, strict=True):
        wide = numpy_helper.to_array(before)
        np.testing.assert_array_equal(numpy_helper.to_array(after), wide.astype(np.float16))


def test_inputs_and_outputs_too_when_asked_for():
    result = narrowed(CONV, io=True)
    assert [n.op_type for n in result.model.graph.node] == [n.op_type for n in CONV.graph.node]
    for value in (*result.model.graph.input, *result.model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT16
    agree(CONV, result.model)


def test_bfloat16_is_computed_in_where_the_opset_has_it_and_stored_elsewhere():
    stored = narrowed(CONV, "bf16")
    assert "Conv of opset 17" in stored.storage
    agree(CONV, stored.model, 3e-2)
    new = copy_of(CONV)
    new.opset_import[0].version, new.ir_version = 22, 10
    computed = narrowed(new, "bf16")
    assert computed.storage == ""
    assert set(kinds(computed.model).values()) == {TensorProto.BFLOAT16}
    agree(new, computed.model, 3e-2)


def test_large_weights_are_stored_in_bfloat16_and_read_in_float32():
    source = model("g (float[N,40] x) => (float[N,40,1] y) "
                   "{ u = Unsqueeze(x, a)  y = ConvTranspose(u, W) }",
                   a=np.array([2]), W=f32(40, 40, 1))  # fmt: skip
    result = narrowed(source, "bf16")
    assert kinds(result.model)["W"] == TensorProto.BFLOAT16
    assert result.model.ByteSize() < 0.6 * source.ByteSize()
    agree(source, result.model, 3e-2)


@pytest.mark.parametrize("form", ["initializer", "constant"])
def test_scales_of_resize_stay_exact(form: str):
    third = np.array([1, 1, 4 / 3, 4 / 3], np.float32)  # no float16
    source = model("g (float[N,2,6,6] x) => (float[N,2,8,8] y) "
                   "{ c = Conv(x, W)  y = Resize <mode=\"linear\"> (c, , s) }",
                   W=f32(2, 2, 1, 1), s=third)  # fmt: skip
    if form == "constant":
        tensor = source.graph.initializer.pop()
        source.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["s"], value=tensor))
    result = narrowed(source)
    held = {**{n.output[0]: n.attribute[0].t for n in result.model.graph.node
               if n.op_type == "Constant"},
            **{t.name: t for t in result.model.graph.initializer}}  # fmt: skip
    np.testing.assert_array_equal(numpy_helper.to_array(held["s"]), third)
    agree(source, result.model)


def test_shapes_are_computed_in_float32():
    """4099 rows are no float16: the shape that is computed from it would be wrong."""
    source = model(
        """g (float[4099,2] x) => (float[2,4099] y) {
            s = Shape(x)  f = Cast <to=1> (s)  h = Mul(f, one)  i = Cast <to=7> (h)
            rev = Gather(i, order)  m = MatMul(x, W)  y = Reshape(m, rev) }""",
        one=np.array([1], np.float32), order=np.array([1, 0]), W=f32(2, 2),
    )  # fmt: skip
    result = narrowed(source)
    assert kinds(result.model)["one"] == TensorProto.FLOAT
    agree(source, result.model)


def test_a_batch_norm_that_is_left_stays_in_float32():
    source = model(
        """g (float[N,4,3] x) => (float[N,4,3] y) {
            n = BatchNormalization(x, g, b, m, v)  s = Sigmoid(n)  y = Conv(s, W) }""",
        g=f32(4), b=f32(4), m=f32(4, scale=1e-6), v=np.full(4, 1e-9, np.float32),
        W=f32(4, 4, 1),
    )  # fmt: skip
    result = narrowed(source)
    assert list(result.kept) == ["BatchNormalization0"]
    assert {kinds(result.model)[n] for n in "gbmv"} == {TensorProto.FLOAT}
    assert result.vanished == 0
    agree(source, result.model)


def test_branches_are_narrowed_with_what_they_capture():
    source = model(
        """g (float[N,4] x, bool c) => (float[N,4] y) {
            h = MatMul(x, W)
            y = If (c) <
              then_branch = t () => (float[N,4] p) { p = Mul(h, k) },
              else_branch = e () => (float[N,4] q) { z = Constant <value_float=2.5> ()
                                                     q = Add(h, z) } > }""",
        W=f32(4, 4), k=f32(4),
    )  # fmt: skip
    result = narrowed(source)
    assert set(kinds(result.model).values()) == {TensorProto.FLOAT16}
    agree(source, result.model)


def test_a_loop_carries_narrow_values():
    source = model(
        """g (float[2,4] x) => (float[2,4] y) {
            y = Loop (n, , x) <
              body = b (int64 i, bool go, float[2,4] s) => (bool on, float[2,4] t) {
                on = Identity(go)  m = MatMul(s, W)  t = Tanh(m) } > }""",
        n=np.array(3), W=f32(4, 4, scale=0.5),
    )  # fmt: skip
    agree(source, narrowed(source).model)


def test_a_value_read_in_both_types_has_both():
    """Range has no float16 in any opset; its start is also an operand of the Add."""
    source = model(
        """g (float[3] x) => (float[3] y, float[3] r) {
            r = Range(a, b, d)  y = Add(x, a) }""",
        a=np.array(0.1, np.float32), b=np.array(2.9, np.float32), d=np.array(1, np.float32),
    )  # fmt: skip
    result = narrowed(source)
    assert kinds(result.model) == {"a": 1, "b": 1, "d": 1, "a_float16": TensorProto.FLOAT16}
    assert list(result.kept) == ["Range0"]
    agree(source, result.model)


def test_outputs_that_are_read_inside_too():
    source = model("g (float[N,4] x) => (float[N,4] h, float[N,4] y) "
                   "{ h = MatMul(x, W)  y = Relu(h) }", W=f32(4, 4))  # fmt: skip
    result = narrowed(source)
    assert [o.name for o in result.model.graph.output] == ["h", "y"]
    agree(source, result.model)


def test_weights_listed_as_inputs_change_there_too():
    source = model("g (float[N,4] x, float[4,4] W) => (float[N,4] y) { y = MatMul(x, W) }", 9, 3,
                   W=f32(4, 4))  # fmt: skip
    result = narrowed(source)
    types = {i.name: i.type.tensor_type.elem_type for i in result.model.graph.input}
    assert types == {"x": TensorProto.FLOAT, "W": TensorProto.FLOAT16}
    agree(source, result.model)


def test_a_default_that_callers_may_override_stays_as_they_know_it():
    source = model("g (float[N,4] x, float[4,4] W) => (float[N,4] y) { y = MatMul(x, W) }",
                   W=f32(4, 4))  # fmt: skip
    result = narrowed(source)
    assert kinds(result.model)["W"] == TensorProto.FLOAT
    agree(source, result.model)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(kind: str):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    source = model(
        f"g (float[T,N,3] x) => (float[T,1,N,2] y) {{ y = {kind} <hidden_size=2> (x, W, R) }}",
        W=f32(1, 2 * gates, 3), R=f32(1, 2 * gates, 2),
    )  # fmt: skip
    agree(source, narrowed(source).model)


def test_an_overflow_is_refused_with_the_nodes_name():
    big = f32(4, 4)
    big[1, 2] = 1e5
    source = model("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, W) }", W=big)
    with pytest.raises(RefusedError, match=r"'W' of MatMul 'MatMul0' does not fit float16: 1e\+05"):
        narrowed(source)
    assert narrowed(source, "bf16").vanished == 0


def test_bounds_and_infinities_are_no_overflow():
    source = model("g (float[N,4] x) => (float[N,4] y) { c = Clip(x, lo, hi)  y = Max(c, m) }",
                   lo=np.array(-3.4e38, np.float32), hi=np.array(3.4e38, np.float32),
                   m=np.full(4, -np.inf, np.float32))  # fmt: skip
    agree(source, narrowed(source).model)


LOWEST = np.finfo(np.float32).min
MASKS = {
    "Where": "c = Where(m, x, low)",
    "Add": "a = Where(m, zero, low) c = Add(x, a)",
    "Mul": "f = Cast <to = 1> (m) i = Sub(one, f) a = Mul(i, low) c = Add(x, a)",
    "ConstantOfShape": """k = ConstantOfShape <value = float[1] {-3.4028235e38}> (size)
        i = Where(m, zero, one) a = Mul(k, i) c = Add(x, a)""",
}


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", MASKS)
def test_the_lowest_float32_of_a_mask_becomes_the_lowest_half(kind: str, to: str):
    body = MASKS[kind]
    constants = {
        "low": np.array(LOWEST), "zero": np.array(0, np.float32), "one": np.array(1, np.float32),
        "size": np.array([4, 4]), "m": np.tril(np.ones((4, 4), bool)),
    }  # fmt: skip
    used = {n: a for n, a in constants.items() if f"{n}," in body or f"{n})" in body}
    source = model(f"g (float[2,4,4] x) => (float[2,4,4] y) {{ {body} y = Softmax(c) }}", **used)
    result = narrowed(source, to)
    agree(source, result.model, rtol=2e-2)


def test_a_weight_beyond_the_range_is_no_mask():
    source = model("g (float[2,4] x) => (float[2,4] y) { y = Mul(x, w) }",
                   w=np.array([1, 2, 1e8, 2e8], np.float32))  # fmt: skip
    with pytest.raises(RefusedError, match="does not fit float16"):
        to_half(source, "fp16")


EPSILONS = {
    "sqrt": "v = ReduceMean <axes = [-1]> (q) w = Add(v, eps) s = Sqrt(w) y = Div(x, s)",
    "power": "v = ReduceMean <axes = [-1]> (q) w = Add(eps, v) s = Pow(w, p) y = Mul(x, s)",
    "largest": "v = ReduceSum(q) s = Sqrt(v) w = Max(s, eps) y = Div(x, w)",
    "clip": "v = ReduceSum(q) s = Sqrt(v) w = Clip(s, eps) y = Div(x, w)",
}


@pytest.mark.parametrize("kind", EPSILONS)
def test_an_epsilon_below_the_range_still_keeps_zero_rows_finite(kind: str):
    constants = {"eps": np.array(1e-12, np.float32), "p": np.array(-0.5, np.float32)}
    body = EPSILONS[kind]
    used = {n: a for n, a in constants.items() if f"{n}," in body or f"{n})" in body}
    text = f"g (float[3,4] x) => (float[3,4] y) {{ q = Mul(x, x) {body} }}"
    result = narrowed(model(text, **used))
    assert result.vanished == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(result.model.SerializeToString())
    x = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, -2, 3, 0.5]], np.float32)
    assert np.isfinite(session.run(None, {"x": x})[0]).all()


def test_weights_that_vanish_are_counted():
    tiny = np.array([[1e-9, 1.0], [0.0, 1e-10]], np.float32)
    source = model("g (float[N,2] x) => (float[N,2] y) { y = MatMul(x, W) }", W=tiny)
    assert narrowed(source).vanished == 2


def test_a_value_of_unknown_type_is_refused_by_name():
    source = model("g (float[N,2] x) => (float[N,2] y) { h = my.Op(x)  y = Relu(h) }")
    source.opset_import.add(domain="my", version=1)
    with pytest.raises(UnsupportedError, match="'h'"):
        to_half(source, "fp16")


def test_types_that_inference_leaves_out_follow_from_the_inputs():
    source = model("g (float[N,2,4,4] x) => (float[N,2,4,4] y) { k = Identity(W)  y = Conv(x, k) }",
                   W=f32(2, 2, 1, 1))  # fmt: skip
    for to, rtol in (("fp16", 5e-3), ("bf16", 3e-2)):
        agree(source, narrowed(source, to).model, rtol)


@pytest.mark.parametrize("group", range(4))
def test_random_graphs(group: int):
    from tests.fuzz.generator import generate

    for seed in range(15 * group, 15 * group + 15):
        source = generate(seed)
        result = narrowed(source, io=bool(seed % 2))
        if seed % 5 == 0:
            narrowed(source, "bf16")
        report = verify(source, result.model, draws=1, batches=(2,), rtol=2e-2, atol=1e-2)
        assert report.passed, (seed, report.to_dict())


def test_misspelt_types_are_refused():
    with pytest.raises(UsageError, match="'fp15'"):
        to_half(copy_of(CONV), "fp15")


def with_norm() -> onnx.ModelProto:
    return model(
        """g (float[N,3,8,8] x) => (float[N,4,6,6] y) {
            c = Conv(x, W)  n = BatchNormalization(c, g, b, m, v)  y = Relu(n) }""",
        W=f32(4, 3, 3, 3), g=f32(4, scale=1), b=f32(4), m=f32(4),
        v=RNG.uniform(0.5, 2, 4).astype(np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_the_public_fold_narrows(to: str, tmp_path):
    source = with_norm()
    before = source.SerializeToString()
    result = bnpass.fold(source, to=to)
    assert source.SerializeToString() == before
    assert "BatchNormalization" not in [n.op_type for n in result.graph.node]
    path = bnpass.fold(source, to=to, output=tmp_path / "d.onnx")
    assert onnx.load(path).SerializeToString() == result.SerializeToString()
    agree(source, result, 3e-2)


def test_a_narrowed_model_that_is_wrong_is_not_returned(monkeypatch):
    from bnpass.deploy import pipeline

    right = pipeline.to_half

    def wrong(*arguments, **options):
        done = right(*arguments, **options)
        tensor = next(t for t in done.model.graph.initializer if t.name == "W")
        values = numpy_helper.to_array(tensor).copy()
        values[0] *= 1.5
        tensor.CopyFrom(numpy_helper.from_array(values, "W"))
        return done

    monkeypatch.setattr(pipeline, "to_half", wrong)
    with pytest.raises(VerificationError):
        bnpass.fold(with_norm(), to="float16")


def test_modules_are_told_what_to_call():
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match="ONNX") as refused:
        bnpass.fold(torch.nn.Linear(2, 2).eval(), to="float16")
    assert "half" in refused.value.hint


@pytest.mark.gpu
@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("io", [False, True])
def test_on_cuda(to: str, io: bool):
    from bnpass.runtime import ort, providers

    if not providers.gpu_count():
        pytest.skip("no GPU")
    if "CUDAExecutionProvider" not in ort.onnxruntime().get_available_providers():
        pytest.skip("an onnxruntime for the CPU only")
    result = narrowed(CONV, to, io=io)
    report = verify(CONV, result.model, provider="cuda", rtol=3e-2, atol=1e-3)
    assert report.passed and report.candidate_engine == "onnxruntime", report.to_dict()
