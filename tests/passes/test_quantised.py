"""BatchNorms behind quantised weights: the size goes into the scale, the sign into the codes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnpass
from bnpass.errors import InputError
from bnpass.onnx_model.model import OnnxModel
from bnpass.verdict.proof import prove
from tests.helpers import Norm, assert_folds, assert_stays, build, fold, nodes

RNG = np.random.default_rng(11)


def codes(*shape, kind=np.int8, low=None):
    info = np.iinfo(kind)
    found = RNG.integers(info.min if low is None else low, info.max + 1, shape)
    found.reshape(-1)[:2] = info.min if low is None else low
    return found.astype(kind)


def scales(*shape):
    return RNG.uniform(0.002, 0.02, shape).astype(np.float32)


def conv(weight, **more):
    text = f"""(float[N,3,6,6] x) => (float[] y) {{
      w = DequantizeLinear {more.pop("attrs", "<axis = 0>")} ({weight})
      c = Conv <pads = [1,1,1,1]> (x, w{more.pop("bias", "")})
      b = BN(c, n)
      y = Relu(b)
    }}"""
    return build(text, {"n": Norm(6), **more}, opset=17)


def assert_still_quantised(result, kind=np.int8):
    kinds = {a.dtype for a in result.weights().values() if a.ndim > 1}
    assert kinds == {np.dtype(kind)}, kinds
    assert result.count("Mul", "Add") == 0


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("zero", ["none", "middle", "odd"])
@pytest.mark.parametrize("low", [None, 1])
def test_conv_with_every_code_and_zero_point(kind, zero, low):
    q = codes(6, 3, 3, 3, kind=kind, low=low)
    if zero == "none":
        model = conv("q, s", q=q, s=scales(6))
    else:
        middle = 0 if kind is np.int8 else 128
        z = np.full(6, middle if zero == "middle" else middle + 5, kind)
        model = conv("q, s, z", q=q, s=scales(6), z=z)
    assert_still_quantised(assert_folds(model), kind)


@pytest.mark.parametrize("zero", [None, np.uint8(117)])
def test_one_scale_becomes_one_a_channel(zero):
    more = {"q": codes(6, 3, 3, 3, kind=np.uint8), "s": np.float32(0.01)}
    if zero is not None:
        more["z"] = np.array(zero)
    result = assert_folds(conv("q, s" + (", z" if zero is not None else ""), attrs="", **more))
    (node,) = [n for n in nodes(result.after.graph) if n.op_type == "DequantizeLinear"]
    assert result.weights()[node.input[1]].shape == (6,)
    assert [a.i for a in node.attribute if a.name == "axis"] == [0]


def test_before_opset_13_there_is_one_scale():
    text = """(float[N,3,6,6] x) => (float[] y) {
      w = DequantizeLinear(q, s) c = Conv(x, w) b = BN(c, n) y = Relu(b)
    }"""
    weights = {"q": codes(6, 3, 3, 3, low=-127), "s": np.float32(0.01)}
    assert_stays(build(text, {**weights, "n": Norm(6)}, opset=12), "13 has")
    same = {f"n_{k}": np.full(6, v, np.float32) for k, v in zip("gbmv", (2, 1, 3, 4), strict=True)}
    model = build(text.replace("BN(c, n)", "BatchNormalization(c, n_g, n_b, n_m, n_v)"),
                  {**weights, **same}, opset=12)  # fmt: skip
    assert_folds(model)


@pytest.mark.parametrize("layer", [
    "MatMul(x, w)", "Gemm(x, w)", "Gemm(x, w, b)", "Gemm <alpha = 0.5, beta = 2.0> (x, w, b)",
    "Gemm <transB = 1> (x, v, b)",
])  # fmt: skip
def test_products(layer):
    axis, shape = (0, (6, 8)) if "transB" in layer else (1, (8, 6))
    text = f"""(float[N,8] x) => (float[] y) {{
      {"v" if axis == 0 else "w"} = DequantizeLinear <axis = {axis}> (q, s)
      c = {layer}
      b2 = BN(c, n)
      y = Relu(b2)
    }}"""
    weights = {"q": codes(*shape), "s": scales(6), "n": Norm(6)}
    if "b)" in layer:
        weights["b"] = (6,)
    result = assert_folds(build(text, weights, opset=17))
    assert result.count("Add") == (1 if "MatMul" in layer else 0)


def test_a_weight_that_is_transposed_behind():
    text = """(float[N,8] x) => (float[] y) {
      d = DequantizeLinear <axis = 0> (q, s) w = Transpose <perm = [1,0]> (d)
      c = MatMul(x, w) b = BN(c, n) y = Relu(b)
    }"""
    weights = {"q": codes(6, 8), "s": scales(6), "n": Norm(6)}
    assert_folds(build(text, weights, opset=17))


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution(group):
    text = f"""(float[N,4,5,5] x) => (float[] y) {{
      w = DequantizeLinear <axis = 1> (q, s) c = ConvTranspose <group = {group}> (x, w)
      b = BN(c, n) y = Relu(b)
    }}"""
    weights = {"q": codes(4, 6 // group, 3, 3), "s": scales(6 // group), "n": Norm(6)}
    model = build(text, weights, opset=17)
    if group == 1:
        assert_folds(model)
    else:
        assert_stays(model, "no scale for each output channel")


# --- biases


def biased(n, size=1000):
    s = scales(6)
    return {"q": codes(6, 3, 3, 3), "s": s, "p": RNG.integers(-size, size, 6).astype(np.int32),
            "sp": (s * 0.05).astype(np.float32), "n": n}  # fmt: skip


BIASED = """(float[N,3,6,6] x) => (float[] y) {
  w = DequantizeLinear <axis = 0> (q, s)
  i = DequantizeLinear <axis = 0> (p, sp)
  c = Conv <pads = [1,1,1,1]> (x, w, i)
  b = BN(c, n)
  y = Relu(b)
}"""


def test_an_int32_bias_keeps_the_scale_of_input_times_weight():
    weights = biased(Norm(6))
    model = build(BIASED, weights, opset=17)
    step = float(np.abs(weights["sp"]).max())
    result = fold(model, rtol=2 * step)
    assert result.count("BatchNormalization") == 0
    new = {n.name or n.output[0]: [result.weights().get(i) for i in n.input]
           for n in nodes(result.after.graph) if n.op_type == "DequantizeLinear"}  # fmt: skip
    (weight,) = [v for v in new.values() if v[0].ndim == 4]
    (bias,) = [v for v in new.values() if v[0].ndim == 1]
    assert bias[0].dtype == np.int32
    np.testing.assert_allclose(bias[1], weight[1] * 0.05, rtol=1e-6)


@pytest.mark.parametrize("trained", [False, True])
def test_the_verdict_lets_an_int32_bias_be_off_by_half_a_step_but_not_by_two(trained):
    weights = biased(Norm(6))
    text = BIASED.replace("Relu", "Neg")  # a Relu hides a channel that it never lets through
    if trained:
        text = text.replace("w = ", "k = QuantizeLinear <axis = 0> (f, s, z)\n  w = ")
        text = text.replace("(q, s)", "(k, s, z)")
        weights |= {"f": (weights.pop("q") * weights["s"].reshape(-1, 1, 1, 1)).astype(np.float32),
                    "z": np.zeros(6, np.int8)}  # fmt: skip
    model = build(text, weights, opset=17)
    done = bnpass.fold(model)
    assert not any(n.op_type == "BatchNormalization" for n in done.graph.node)
    assert answer(model, done).passed
    (codes,) = [t for t in done.graph.initializer if t.data_type == onnx.TensorProto.INT32]
    plain = numpy_helper.to_array(codes)
    for channel in range(6):
        moved = plain.copy()
        moved[channel] += 2
        codes.CopyFrom(numpy_helper.from_array(moved, codes.name))
        assert not answer(model, done).passed


def answer(model, done):
    """Question 1 of the verdict."""
    return prove(OnnxModel(model), OnnxModel(done))


def test_an_int32_bias_that_would_overflow_stays_with_its_channel():
    weights = biased(Norm(6))
    gamma, beta = np.full(6, 1e-6, np.float32), np.zeros(6, np.float32)
    beta[4] = 1
    norm = {"n_g": gamma, "n_b": beta, "n_m": np.zeros(6, np.float32),
            "n_v": np.ones(6, np.float32)}  # fmt: skip
    del weights["n"]
    weights["sp"] = (weights["sp"] * 1e-3).astype(np.float32)
    model = build(BIASED.replace("BN(c, n)", "BatchNormalization(c, n_g, n_b, n_m, n_v)"),
                  {**weights, **norm}, opset=17)  # fmt: skip
    assert_stays(model, "channel 4")


# --- training with fake quantisation


QAT = """(float[N,3,6,6] x) => (float[] y) {
  k = QuantizeLinear <axis = 0> (f, s, z)
  w = DequantizeLinear <axis = 0> (k, s, z)
  c = Conv <pads = [1,1,1,1]> (x, w)
  b = BN(c, n)
  y = Relu(b)
}"""


def stored_codes(model, kind):
    """The codes that QuantizeLinear makes of the weight, as onnxruntime does."""
    import onnxruntime

    other = onnx.ModelProto()
    other.CopyFrom(model)
    (node,) = [n for n in other.graph.node if n.op_type == "QuantizeLinear"]
    del other.graph.output[:]
    elem = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    other.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], elem, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(other.SerializeToString(), options)
    (zero,) = [numpy_helper.to_array(t) for t in other.graph.initializer if t.name == node.input[2]]
    x = np.zeros((1, 3, 6, 6), np.float32)
    return session.run(None, {"x": x})[0].astype(int) - zero.reshape(-1, 1, 1, 1).astype(int)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("seed", range(5))
def test_every_code_of_fake_quantisation_is_what_it_was_or_its_negative(kind, seed):
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(6, 3, 3, 3)).astype(np.float32)
    s = (np.abs(f).max((1, 2, 3)) / rng.uniform(60, 140, 6)).astype(np.float32)
    # half of the numbers lie on the border between two codes
    f = np.where(rng.random(f.shape) < 0.5, f, (np.rint(f / s[:, None, None, None]) + 0.5)
                 * s[:, None, None, None]).astype(np.float32)  # fmt: skip
    z = np.full(6, 0 if kind is np.int8 else 128, kind)
    model = build(QAT, {"f": f, "s": s, "z": z, "n": Norm(6)}, opset=17, seed=seed)
    result = assert_folds(model)
    old, new = stored_codes(model, kind), stored_codes(result.after, kind)
    gamma = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "n_g")
    np.testing.assert_array_equal(new, old * np.sign(gamma).astype(int).reshape(-1, 1, 1, 1))


# --- as tools write them

NET = """(float[N,3,8,8] x) => (float[] y) {
  c = Conv <pads = [1,1,1,1]> (x, w, b) n1 = BN(c, n) r = Relu(n1)
  d = Conv(r, v) m1 = BN(d, m) r2 = Relu(m1)
  g = GlobalAveragePool(r2) f = Flatten(g) y = Gemm(f, k)
}"""


class Samples:
    """What onnxruntime's static quantisation calibrates on."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.batches = iter([{"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in "ab"])

    def get_next(self):
        return next(self.batches, None)

    def __iter__(self):
        return self.batches


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("layers_alone", [False, True])
def test_static_quantisation_by_onnxruntime(per_channel, layers_alone, tmp_path):
    from onnxruntime.quantization import QuantFormat, quantize_static

    shapes = {"w": (8, 3, 3, 3), "b": (8,), "v": (6, 8, 1, 1), "k": (6, 4)}
    plain = build(NET, {**shapes, "n": Norm(8), "m": Norm(6)}, opset=17)
    onnx.save(plain, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "codes.onnx", Samples(),
        quant_format=QuantFormat.QDQ, per_channel=per_channel,
        op_types_to_quantize=["Conv", "Gemm"] if layers_alone else None,
        extra_options={"OpTypesToExcludeOutputQuantization": ["Conv"] if layers_alone else []},
    )  # fmt: skip
    model = onnx.load(tmp_path / "codes.onnx")
    result = fold(model, rtol=2e-2)
    if layers_alone:
        assert result.count("BatchNormalization") == 0, result.reasons
        assert result.count("Conv") == 2
    else:
        assert result.count("BatchNormalization") == 2
        assert result.reasons.count("rounding does not commute") == 4  # backward, forward


# --- what stays


def test_a_map_does_not_cross_the_quantisation_of_an_activation():
    text = """(float[N,3,6,6] x) => (float[] y) {
      w = DequantizeLinear <axis = 0> (q, s) c = Conv(x, w) k = QuantizeLinear(c, u, z)
      d = DequantizeLinear(k, u, z) b = BN(d, n) y = Relu(b)
    }"""
    weights = {"q": codes(6, 3, 3, 3), "s": scales(6), "u": np.float32(0.05),
               "z": np.array(128, np.uint8), "n": Norm(6)}  # fmt: skip
    assert_stays(build(text, weights, opset=17), "quantised: rounding does not commute")


def test_scales_along_another_axis_stay():
    text = """(float[N,8] x) => (float[] y) {
      w = DequantizeLinear <axis = 0> (q, s) c = MatMul(x, w) b = BN(c, n) y = Relu(b)
    }"""
    weights = {"q": codes(8, 6), "s": scales(8), "n": Norm(6)}
    assert_stays(build(text, weights, opset=17), "not quantised along its output channels")


def test_blocks_stay():
    text = """(float[N,8] x) => (float[] y) {
      w = DequantizeLinear <axis = 0, block_size = 4> (q, s) c = MatMul(x, w) b = BN(c, n)
      y = Relu(b)
    }"""
    weights = {"q": codes(8, 6), "s": scales(2, 6), "n": Norm(6)}
    assert_stays(build(text, weights, opset=21), "in blocks")


def test_a_weight_that_two_layers_dequantise_together():
    text = """(float[N,8] x, float[N,8] x2) => (float[] y, float[] y2) {
      w = DequantizeLinear <axis = 1> (q, s)
      c = MatMul(x, w) b = BN(c, n) y = Relu(b)
      c2 = MatMul(x2, w) b2 = BN(c2, m) y2 = Relu(b2)
    }"""
    weights = {"q": codes(8, 6), "s": scales(6), "n": Norm(6), "m": Norm(6)}
    assert_stays(build(text, weights, opset=17), "also read by MatMul")


def test_codes_that_two_nodes_dequantise_are_cloned():
    text = """(float[N,8] x, float[N,8] x2) => (float[] y, float[] y2) {
      w = DequantizeLinear <axis = 1> (q, s) w2 = DequantizeLinear <axis = 1> (q, s)
      c = MatMul(x, w) b = BN(c, n) y = Relu(b)
      c2 = MatMul(x2, w2) b2 = BN(c2, m) y2 = Relu(b2)
    }"""
    weights = {"q": codes(8, 6), "s": scales(6), "n": Norm(6), "m": Norm(6)}
    assert_folds(build(text, weights, opset=17))


def test_a_batch_norm_in_front_of_a_quantised_weight_stays():
    text = """(float[N,8] x) => (float[] y) {
      b = BN(x, n) w = DequantizeLinear <axis = 1> (q, s) y = MatMul(b, w)
    }"""
    weights = {"q": codes(8, 6), "s": scales(6), "n": Norm(8)}
    assert_stays(build(text, weights, opset=17), "is quantised")


def test_insert_is_refused():
    with pytest.raises(InputError) as caught:
        bnpass.insert(conv("q, s", q=codes(6, 3, 3, 3), s=scales(6)))
    assert "quantise the folded one" in caught.value.hint
