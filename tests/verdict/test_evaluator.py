"""The evaluator against onnx's node tests, onnxruntime (old opsets, bodies) and torch."""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import lru_cache

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnpass.errors import UnsupportedError
from bnpass.runtime.session import run, session
from bnpass.verdict.evaluator import Evaluator, UnknownOperatorError, known
from bnpass.verdict.evaluator.call import TABLE

ODD = ("INT4", "INT2", "FLOAT4", "E8M0", "E4M3", "E5M2", "e4m3", "e5m2", "int4", "int2", "float4",
       "string", "STRING", "empty_set", "FLOAT8", "BFLOAT16")  # fmt: skip
"""Types that this test cannot feed; parts of case names."""

FORMS = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad": "written with four digits",
    "test_dynamicquantizelinear": "float32 rounds a tie, float64 does not",
    "test_resize_downsample_scales_linear_align_corners": "onnxruntime rounds the size first",
    "test_resize_downsample_scales_cubic_align_corners": "onnxruntime rounds the size first",
}
"""Cases whose expected values are not those of float64."""


@lru_cache(maxsize=1)
def cases():
    from onnx.backend.test.case.node import collect_testcases

    grouped = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            nodes = case.model.graph.node
            ports = [*case.model.graph.input, *case.model.graph.output]
            tensors = all(p.type.HasField("tensor_type") for p in ports)
            if len(nodes) == 1 and not nodes[0].domain and tensors:
                grouped[nodes[0].op_type].append(case)
    return grouped


def array(given):
    tensor = isinstance(given, onnx.TensorProto)
    return numpy_helper.to_array(given) if tensor else np.asarray(given)


@pytest.mark.parametrize("kind", sorted(k for k in TABLE if "::" not in k))
def test_onnx_node_tests(kind):
    ran = 0
    for case in cases()[kind]:
        if any(part in case.name for part in ODD) or case.name in FORMS:
            continue
        inputs, outputs = case.data_sets[0]
        ports = case.model.graph.input
        feeds = {p.name: array(a) for p, a in zip(ports, inputs, strict=True)}
        try:
            found = Evaluator(case.model).run(feeds)
        except UnknownOperatorError:
            continue  # a form that is refused: never a wrong number
        tol = 1e-2 if "float16" in case.name or "FLOAT16" in case.name else 1e-5
        for got, want in zip(found.values(), outputs, strict=True):
            want = array(want)
            assert got.shape == want.shape, case.name
            np.testing.assert_allclose(got.astype(float), want.astype(float), tol, tol, True,
                                       case.name)  # fmt: skip
        ran += 1
    assert ran or kind in {"Upsample", "Scatter", "Dropout", "GlobalLpPool"}, "no case ran"


def model(opset, node, inputs, constants=(), outputs=("y",)):
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
         for n, a in inputs.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in dict(constants).items()],
    )  # fmt: skip
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    inferred = onnx.shape_inference.infer_shapes(made)
    del made.graph.output[:]
    made.graph.output.extend(inferred.graph.output)
    return made


RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 6, 5)).astype(np.float32)
C = [RNG.uniform(0.5, 2, 3).astype(np.float32) for _ in range(4)]

OLD = [
    (7, "BatchNormalization", dict(zip("gbmv", C, strict=True)), {"momentum": 0.9}),
    (9, "BatchNormalization", dict(zip("gbmv", C, strict=True)), {"epsilon": 0.1}),
    (13, "BatchNormalization", dict(zip("gbmv", C, strict=True)), {}),
    (7, "Upsample", {}, {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "nearest"}),
    (9, "Upsample", {"s": np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear"}),
    (10, "Resize", {"s": np.array([1, 1, 2, 1.5], np.float32)}, {"mode": "nearest"}),
    (7, "Pad", {}, {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 0.5}),
    (9, "Slice", {}, {"starts": [1, -3], "ends": [3, 100], "axes": [1, 2]}),
    (11, "Softmax", {}, {"axis": 1}),
    (11, "LogSoftmax", {}, {"axis": 2}),
    (11, "Squeeze", {}, {}),
    (11, "Unsqueeze", {}, {"axes": [0, 5]}),
    (11, "Split", {}, {"axis": 2, "split": [1, 2, 3]}),
    (7, "ReduceMean", {}, {"axes": [2, -1], "keepdims": 0}),
    (9, "Clip", {}, {"min": -0.5, "max": 0.25}),
    (7, "Dropout", {}, {"ratio": 0.3}),
    (9, "TopK", {}, {"k": 2, "axis": 1}),
    (18, "AveragePool", {}, {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    (11, "AveragePool", {}, {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER"}),
    (11, "MaxPool", {}, {"kernel_shape": [2, 2], "dilations": [2, 1], "pads": [1, 0, 1, 1]}),
    (18, "GroupNormalization", {"g": C[0][:1], "b": C[1][:1]}, {"num_groups": 1}),
]


@pytest.mark.parametrize(("opset", "kind", "constants", "attrs"), OLD, ids=lambda v: str(v)[:20])
def test_old_opsets_as_onnxruntime(opset, kind, constants, attrs):
    if kind == "TopK":
        constants, attrs = {}, {"axis": 1, "k": 2}
    x = X[:1, :1] if kind == "Squeeze" else X
    outputs = ("a", "b", "c") if kind == "Split" else ("y", "i") if kind == "TopK" else ("y",)
    made = model(opset, helper.make_node(kind, ["x", *constants], outputs, **attrs), {"x": x},
                 constants, outputs)  # fmt: skip
    want = run(session(made, optimize=False), None, {"x": x})
    for got, expected in zip(Evaluator(made).run({"x": x}).values(), want, strict=True):
        np.testing.assert_allclose(got, expected, 1e-5, 1e-5)


def test_batch_norm_of_opset_9_uses_running_statistics():
    """onnx's own reference mixes the batch's in: its momentum of 0.9 is a default there."""
    node = helper.make_node("BatchNormalization", ["x", *"gbmv"], ["y", "", ""], epsilon=0.0)
    constants = {"g": C[0], "b": C[1], "m": C[2], "v": C[3]}
    found = Evaluator(model(9, node, {"x": X}, constants)).run({"x": X})["y"]
    shape = (3, 1, 1)
    g, b, m, v = (a.astype(float).reshape(shape) for a in C)
    want = (X - m) / np.sqrt(v) * g + b
    np.testing.assert_allclose(found, want, 1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_as_torch(dims, transposed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(dims)
    x = rng.normal(size=(2, 4, *[7, 6, 5][:dims]))
    w = rng.normal(size=(4, 3, *[3, 2, 3][:dims]) if transposed else (6, 2, *[3, 2, 3][:dims]))
    b = rng.normal(size=6)
    attrs = {"group": 2, "strides": [2, 1, 2][:dims], "dilations": [1, 2, 1][:dims]}
    extra = {"output_padding": [1, 0, 1][:dims]} if transposed else {}
    kind = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(kind, ["x", "w", "b"], ["y"], pads=[1] * (2 * dims), **attrs, **extra)
    graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="y")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    found = Evaluator(made).run({"x": x, "w": w, "b": b})["y"]
    function = getattr(torch.nn.functional, f"conv{'_transpose' if transposed else ''}{dims}d")
    named = {"stride": attrs["strides"], "dilation": attrs["dilations"], "padding": 1, "groups": 2}
    want = function(*map(torch.from_numpy, (x, w, b)), **named, **extra)
    np.testing.assert_allclose(found, want.numpy(), 1e-12, 1e-12)


def test_bodies_read_values_around_them():
    made = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 3] x, bool c) => (float[2, 3] y, float[2, 3] z) {
            n = Constant<value_int = 3>()
            t = Constant<value = bool {1}>()
            h = Neg(x)
            y = If(c) <then_branch = a () => (float[2, 3] p) { p = Add(x, h) },
                       else_branch = b () => (float[2, 3] q) { q = Mul(h, h) }>
            z = Loop(n, t, x) <body = l (int64 i, bool k, float[2, 3] s)
                => (bool k2, float[2, 3] s2) { k2 = Identity(k) s2 = Add(s, h) }>
        }"""
    )
    for flag in (True, False):
        feeds = {"x": X[0, 0, :2, :3], "c": np.array(flag)}
        want = run(session(made, optimize=False), None, feeds)
        for got, expected in zip(Evaluator(made).run(feeds).values(), want, strict=True):
            np.testing.assert_allclose(got, expected, 1e-6)


def test_local_functions_with_attributes():
    made = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[2, 3] x) => (float[2, 3] y) { y = my.f<slope = 0.5>(x) }
        <opset_import: ["": 17], domain: "my"> f <slope> (a) => (b) {
            c = LeakyRelu<alpha: float = @slope>(a)
            b = Add(c, a)
        }"""
    )
    x = X[0, 0, :2, :3]
    found = Evaluator(made).run({"x": x})["y"]
    np.testing.assert_allclose(found, np.where(x < 0, 1.5 * x, 2 * x), 1e-6)


def test_what_is_not_known_is_refused_by_name():
    assert not known("GridSample")
    node = helper.make_node("GridSample", ["x", "x"], ["y"], name="grid")
    graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="y")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(UnsupportedError, match="GridSample"):
        Evaluator(made).run({"x": X})
