"""Right folds of quantised networks: no answer of the verdict may refuse one.

    python -m tests.fuzz.quantised --right 300
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnpass.frontends.onnx.folding import fold_model
from bnpass.runtime.verification import VerifyReport
from bnpass.verdict.judge import Edits, judge

F32 = np.float32


class QuantisedNet:
    """Convolutions on codes, a BatchNormalization behind each, QuantizeLinear between them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def const(self, array: np.ndarray) -> str:
        name = f"k{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind: str, *inputs: str, **attrs: object) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name, **attrs))
        return f"{name}_out"

    def steps(self, x: str) -> str:
        """An activation by its codes, of either sign."""
        scale = self.const(F32(self.rng.uniform(0.01, 0.06)))
        zero = self.const(np.uint8(128) if self.rng.random() < 0.5 else np.int8(0))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, scale, zero), scale,
                         zero)  # fmt: skip

    def conv(self, x: str, a: int, b: int) -> str:
        """Weights in float, as codes, as codes with an int32 bias, or quantised on the way."""
        r, kind = self.rng, self.rng.integers(4)
        w = r.normal(0, 1 / np.sqrt(9 * a), (b, a, 3, 3)).astype(F32)
        each = r.random() < 0.5
        scale = np.asarray(np.abs(w).max((1, 2, 3) if each else None) / 127, F32)
        wide = scale.reshape(-1, 1, 1, 1) if each else scale
        codes = np.clip(np.round(w / wide), -127, 127).astype(np.int8)
        zero, axis = np.zeros_like(scale, np.int8), {"axis": 0} if each else {}
        if kind == 0:
            weight = self.const(w)
        elif kind == 1:
            made = self.node("QuantizeLinear", self.const(w), self.const(scale), self.const(zero),
                             **axis)
            weight = self.node("DequantizeLinear", made, self.const(scale), self.const(zero),
                               **axis)
        else:
            weight = self.node("DequantizeLinear", self.const(codes), self.const(scale),
                               self.const(zero), **axis)
        bias = []
        if kind == 2:
            steps = self.const(r.integers(-400, 400, b).astype(np.int32))
            size = self.const(np.asarray(scale * F32(0.02), F32))
            empty = self.const(np.zeros_like(scale, np.int32))
            bias = [self.node("DequantizeLinear", steps, size, empty, **axis)]
        elif r.random() < 0.5:
            bias = [self.const(r.normal(size=b).astype(F32))]
        return self.node("Conv", x, weight, *bias, pads=[1] * 4)

    def bn(self, x: str, n: int) -> str:
        r = self.rng
        var = 10.0 ** r.uniform(-2, 1, n)
        mean = r.normal(size=n) * np.sqrt(var) * r.choice([0.3, 3, 30])
        gamma = r.uniform(0.5, 2, n) * np.where(r.random(n) < 0.3, -1, 1)
        parts = [self.const(p.astype(F32)) for p in (gamma, r.normal(size=n), mean, var)]
        return self.node("BatchNormalization", x, *parts)


def network(seed: int) -> onnx.ModelProto:
    """One to three layers; some end in an ArgMax."""
    net = QuantisedNet(seed)
    r, channels = net.rng, 3
    x = net.steps("x") if r.random() < 0.8 else "x"
    for _ in range(r.integers(1, 4)):
        width = int(r.integers(3, 12))
        x = net.bn(net.conv(x, channels, width), width)
        x = net.node("Relu", x) if r.random() < 0.7 else x
        x, channels = net.steps(x) if r.random() < 0.8 else x, width
    kind = 7 if r.random() < 0.3 else 1
    x = net.node("ArgMax", x, axis=1) if kind == 7 else x
    graph = helper.make_graph(
        net.nodes, "g", [helper.make_tensor_value_info("x", 1, ["N", 3, 10, 10])],
        [helper.make_tensor_value_info(x, kind, None)], net.tensors,
    )  # fmt: skip
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return onnx.shape_inference.infer_shapes(made)


def judged(seed: int) -> VerifyReport:
    """A network's right fold, asked all three questions without a limit of time."""
    model = network(seed)
    done = fold_model(model)
    assert done.plan.folded
    return judge(model, done.model, Edits(done.pairs, done.original, done.changed), budget=None)


def main(arguments: list[str] | None = None) -> int:
    """Judge the corpus; 1 where a right fold is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--right", type=int, default=300)
    args = parser.parse_args(arguments)
    reports = [judged(seed) for seed in range(args.right)]
    bad = [seed for seed, report in enumerate(reports) if not report.passed]
    stepped = [c for r in reports for c in r.outputs.values() if c.steps]
    most = max((f"{c.steps} of {c.compared}" for c in stepped), default="none",
               key=lambda text: int(text.split()[0]))
    print(f"right quantised folds: {len(bad)} of {len(reports)} refused {bad}; in {len(stepped)} "
          f"entries are another step, at most {most}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
