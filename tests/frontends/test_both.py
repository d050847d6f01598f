"""One list of patterns through both frontends: they must fold the same and mean the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper

import bnpass
from bnpass.runtime.session import session

BN = "BatchNormalization (%s, g, b, m, v)"


def weights(**shapes):
    """Weights by name; g, b, m, v are a BatchNorm's for as many channels as ``bn`` says."""
    rng = np.random.default_rng(0)
    n = shapes.pop("bn", 4)
    made = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    sign = np.where(np.arange(n) % 2, 1.0, -1.0)
    made |= {"g": sign * rng.uniform(0.5, 1.5, n), "b": rng.standard_normal(n),
             "m": rng.standard_normal(n), "v": rng.uniform(0.5, 1.5, n)}  # fmt: skip
    return {k: v.astype(np.float32) for k, v in made.items()}


def bn(x):
    return BN % x


IMAGE, ROWS, TOKENS = "N,3,8,8", "N,5", "N,6,5"

HALF = "<kernel_shape=[2,2],strides=[2,2]>"
COUNTED = "<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>"
TWO = "e = %s f = Relu (d) h = Tanh (e) y = Add (h, f)"

PATTERNS = {
    "conv": (IMAGE, "N,4,6,6", f"c = Conv (x, w) y = {bn('c')}", {"w": (4, 3, 3, 3)}),
    "conv_bias": (IMAGE, "N,4,6,6", f"c = Conv (x, w, k) y = {bn('c')}",
                  {"w": (4, 3, 3, 3), "k": (4,)}),
    "conv_auto_pad": (IMAGE, "N,4,8,8", f'c = Conv <auto_pad="SAME_UPPER"> (x, w) y = {bn("c")}',
                      {"w": (4, 3, 3, 3)}),
    "transposed": (IMAGE, "N,4,17,17", f"c = ConvTranspose <strides=[2,2]> (x, w) y = {bn('c')}",
                   {"w": (3, 4, 3, 3)}),
    "gemm": (ROWS, "N,4", f"c = Gemm (x, w, k) y = {bn('c')}", {"w": (5, 4), "k": (4,)}),
    "gemm_factors": (ROWS, "N,4",
                     f"c = Gemm <alpha=0.5,beta=2.0,transB=1> (x, w, k) y = {bn('c')}",
                     {"w": (4, 5), "k": (4,)}),
    "matmul": (ROWS, "N,4", f"c = MatMul (x, w) y = {bn('c')}", {"w": (5, 4)}),
    "matmul_add": (ROWS, "N,4", f"c = MatMul (x, w) d = Add (c, k) y = {bn('d')}",
                   {"w": (5, 4), "k": (4,)}),
    "matmul_transpose": (TOKENS, "N,4,6",
                         f"c = MatMul (x, w) d = Transpose <perm=[0,2,1]> (c) y = {bn('d')}",
                         {"w": (5, 4)}),
    "affine": (IMAGE, "N,4,6,6", "c = Conv (x, w) d = Mul (c, s) e = Add (d, t) y = Neg (e)",
               {"w": (4, 3, 3, 3), "s": (4, 1, 1), "t": (1, 4, 1, 1)}),
    "div_sub": (IMAGE, "N,4,6,6", "c = Conv (x, w) d = Div (c, s) y = Sub (t, d)",
                {"w": (4, 3, 3, 3), "s": (4, 1, 1), "t": (4, 1, 1)}),
    "average_pool": (IMAGE, "N,4,3,3",
                     f"c = Conv (x, w) d = AveragePool {HALF} (c) y = {bn('d')}",
                     {"w": (4, 3, 3, 3)}),
    "padded_average_pool": (IMAGE, "N,4,6,6",
                            f"c = Conv (x, w) d = AveragePool {COUNTED} (c) y = {bn('d')}",
                            {"w": (4, 3, 3, 3)}),
    "max_pool_negative": (IMAGE, "N,4,3,3",
                          f"c = Conv (x, w) d = MaxPool {HALF} (c) y = {bn('d')}",
                          {"w": (4, 3, 3, 3)}),
    "global_pool": (IMAGE, "N,4",
                    f"c = Conv (x, w) d = GlobalAveragePool (c) e = Flatten (d) y = {bn('e')}",
                    {"w": (4, 3, 3, 3)}),
    "concat": (IMAGE, "N,4,6,6",
               f"c = Conv (x, w) d = Conv (x, u) e = Concat <axis=1> (c, d) y = {bn('e')}",
               {"w": (3, 3, 3, 3), "u": (1, 3, 3, 3)}),
    "add": (IMAGE, "N,4,6,6", f"c = Conv (x, w) d = Conv (x, u) e = Add (c, d) y = {bn('e')}",
            {"w": (4, 3, 3, 3), "u": (4, 3, 3, 3)}),
    "sum": (IMAGE, "N,4,6,6", f"c = Conv (x, w) d = Conv (x, u) e = Sum (c, d) y = {bn('e')}",
            {"w": (4, 3, 3, 3), "u": (4, 3, 3, 3)}),
    "relu_stays": (IMAGE, "N,4,6,6", f"c = Conv (x, w) d = Relu (c) y = {bn('d')}",
                   {"w": (4, 3, 3, 3)}),
    "forward": (IMAGE, "N,2,6,6", f"c = {bn('x')} y = Conv (c, w)", {"w": (2, 3, 3, 3), "bn": 3}),
    "forward_padded": (IMAGE, "N,2,8,8", f"c = {bn('x')} y = Conv <pads=[1,1,1,1]> (c, w)",
                       {"w": (2, 3, 3, 3), "bn": 3}),
    "forward_gemm": (ROWS, "N,4", f"c = {bn('x')} y = Gemm (c, w, k)",
                     {"w": (5, 4), "k": (4,), "bn": 5}),
    "depth_to_space": (IMAGE, "N,2,12,12",
                       f"c = Conv (x, w) d = DepthToSpace <blocksize=2> (c) y = {bn('d')}",
                       {"w": (8, 3, 3, 3), "bn": 2}),
    "instance_norm": (IMAGE, "N,4,6,6",
                      f"c = Conv (x, w) d = InstanceNormalization (c, s, t) y = {bn('d')}",
                      {"w": (4, 3, 3, 3), "s": (4,), "t": (4,)}),
    "shared_weight": (IMAGE, "N,4,6,6",
                      f"c = Conv (x, w) d = Conv (x, w) {TWO % bn('c')}", {"w": (4, 3, 3, 3)}),
    "two_readers": (IMAGE, "N,4,6,6", f"c = Conv (x, w) d = {bn('c')} e = Tanh (c) y = Add (d, e)",
                    {"w": (4, 3, 3, 3)}),
}  # fmt: skip


def build(name):
    shape, out, body, shapes = PATTERNS[name]
    head = f"{name} (float[{shape}] x) => (float[{out}] y)"
    text = f'<ir_version: 8, opset_import: ["" : 17]> {head} {{ {body} }}'
    model = onnx.parser.parse_model(text)
    used = {i for node in model.graph.node for i in node.input}
    for key, value in weights(**shapes).items():
        if key in used:
            model.graph.initializer.append(numpy_helper.from_array(value, key))
    onnx.checker.check_model(model, full_check=True)
    return model, [2, *(int(d) for d in shape.split(",")[1:])]


@pytest.mark.parametrize("name", PATTERNS)
def test_both_frontends_agree(name):
    model, shape = build(name)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    want = session(model, optimize=False).run(None, {"x": x})[0]
    gm = bnpass.to_torch(model).eval()
    example = (torch.from_numpy(x),)
    for collapse in ("bn", "none"):
        plans = [bnpass.fold(model, plan_only=True, collapse=collapse),
                 bnpass.fold(gm, example, plan_only=True, collapse=collapse)]  # fmt: skip
        assert [e.how for e in plans[0].entries] == [e.how for e in plans[1].entries], collapse
    folded = bnpass.fold(gm, example)
    with torch.no_grad():
        np.testing.assert_allclose(folded(*example).numpy(), want, rtol=1e-3, atol=1e-4)
    done = bnpass.fold(model)
    np.testing.assert_allclose(
        session(done, optimize=False).run(None, {"x": x})[0], want, rtol=1e-3, atol=1e-4
    )
