"""Folds made wrong on purpose, and right ones in networks that are badly conditioned.

    python -m tests.fuzz.wrong_folds --wrong 400 --right 400
    python -m tests.fuzz.wrong_folds --show    # what a pass and a failure look like

Every wrong one has to be caught by the proof of its region with the right node named; no right one
may be refused.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnpass.errors import VerificationError
from bnpass.frontends.onnx.folding import Folded, fold_model
from bnpass.onnx_model.model import OnnxModel
from bnpass.report.verdicts import answers
from bnpass.verdict.findings import ProofReport
from bnpass.verdict.judge import Edits, judge
from bnpass.verdict.proof import prove

F32 = np.float32


class Net:
    """A network of layers with a BatchNormalization behind each."""

    def __init__(self, rng: np.random.Generator, conditioning: float) -> None:
        """``conditioning`` is |mean| / sigma of what is normalised."""
        self.rng, self.conditioning = rng, conditioning
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def const(self, array: np.ndarray) -> str:
        name = f"k{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array.astype(F32), name))
        return name

    def node(self, kind: str, *inputs: str, **attrs: object) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name, **attrs))
        return f"{name}_out"

    def bn(self, x: str, n: int) -> str:
        r = self.rng
        sigma = 10.0 ** r.uniform(-3, 1, n)
        mean = sigma * self.conditioning * r.normal(0, 1, n)
        gamma = r.uniform(0.5, 2, n) * np.where(r.random(n) < 0.5, -1, 1)
        # One channel whose variance is so small that epsilon counts.
        sigma[0], mean[0] = 1e-3, 1e-3 * r.normal()
        parts = [self.const(a) for a in (gamma, r.normal(0, 1, n), mean, sigma**2)]
        return self.node("BatchNormalization", x, *parts, epsilon=1e-5)

    def model(self, shape: tuple[object, ...], result: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", 1, list(shape))],
            [helper.make_tensor_value_info(result, 1, None)], self.tensors,
        )  # fmt: skip
        made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        inferred = onnx.shape_inference.infer_shapes(made)
        made.graph.output[0].CopyFrom(inferred.graph.output[0])
        return made


def convs(net: Net) -> onnx.ModelProto:
    """Three convolutions, one grouped, one transposed."""
    r, x = net.rng, "x"
    for kind, a, b, group in (("Conv", 4, 8, 1), ("Conv", 8, 8, 4), ("ConvTranspose", 8, 6, 2)):
        dims = (a, b // group, 3, 3) if kind == "ConvTranspose" else (b, a // group, 3, 3)
        w = net.const(r.normal(0, 0.3, dims) * 10 ** r.uniform(-2, 1))
        more = [net.const(r.normal(size=b))] if r.random() < 0.5 else []
        x = net.node(kind, x, w, *more, pads=[1, 1, 1, 1], group=group)
        x = net.node("Relu", net.bn(x, b))
    return net.model(("N", 4, 9, 9), x)


def square(net: Net) -> onnx.ModelProto:
    """As many channels as places and as inputs: a wrong axis has the right shape."""
    r, x = net.rng, "x"
    for _ in range(2):
        x = net.node("Conv", x, net.const(r.normal(0, 0.3, (6, 6, 1, 1))))
        x = net.node("Relu", net.bn(x, 6))
    return net.model(("N", 6, 6, 6), x)


def dense(net: Net) -> onnx.ModelProto:
    """Gemm, MatMul and Add, MatMul alone."""
    r, x, width = net.rng, "x", 24
    w, b = net.const(r.normal(0, 0.2, (width, width))), net.const(r.normal(size=width))
    x = net.node("Sigmoid", net.bn(net.node("Gemm", x, w, b, transB=1), width))
    w, b = net.const(r.normal(0, 0.2, (width, width))), net.const(r.normal(size=width))
    x = net.node("Relu", net.bn(net.node("Add", net.node("MatMul", x, w), b), width))
    x = net.bn(net.node("MatMul", x, net.const(r.normal(0, 0.2, (width, 8)))), 8)
    return net.model(("N", width), x)


def wide(net: Net) -> onnx.ModelProto:
    """A layer as wide as VGG's first dense one: 25,088 inputs."""
    r = net.rng
    x = net.node("Gemm", "x", net.const(r.normal(0, 0.01, (25088, 5))), net.const(r.normal(size=5)))
    return net.model(("N", 25088), net.node("Relu", net.bn(x, 5)))


def moving(net: Net) -> onnx.ModelProto:
    """A map that travels: through a pool and a Concat back, and forward into the next layer."""
    r = net.rng
    a = net.node("Conv", "x", net.const(r.normal(0, 0.3, (4, 3, 3, 3))))
    w, c = net.const(r.normal(0, 0.3, (4, 3, 3, 3))), net.const(r.normal(size=4))
    b = net.node("Conv", "x", w, c)
    x = net.node("Concat", a, b, axis=1)
    x = net.node("Relu", net.bn(net.node("AveragePool", x, kernel_shape=[2, 2]), 8))
    x = net.bn(x, 8)
    x = net.node("Conv", x, net.const(r.normal(0, 0.3, (5, 8, 2, 2))), net.const(r.normal(size=5)))
    return net.model(("N", 3, 9, 9), net.node("Tanh", x))


NETS: dict[str, Callable[[Net], onnx.ModelProto]] = {
    "convs": convs, "square": square, "dense": dense, "moving": moving, "wide": wide,
}  # fmt: skip
CONDITIONING = (0.3, 30.0, 3000.0)


# ------------------------------------------------------------------------------- making it wrong


LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass
class Layer:
    """A layer of the folded model: its node, its weight and the axis of its outputs."""

    node: onnx.NodeProto
    weight: onnx.TensorProto
    bias: onnx.TensorProto | None
    axis: int

    def scale(self, factors: np.ndarray) -> None:
        array = numpy_helper.to_array(self.weight)
        shape = [1] * array.ndim
        shape[self.axis] = -1
        self.put(self.weight, array * factors.reshape(shape))

    @staticmethod
    def put(tensor: onnx.TensorProto, array: np.ndarray) -> None:
        tensor.CopyFrom(numpy_helper.from_array(array.astype(F32), tensor.name))


def layers(model: onnx.ModelProto, changed: set[str]) -> list[Layer]:
    """The layers whose weights a fold has changed."""
    tensors = {t.name: t for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.name not in changed or node.op_type not in LAYERS:
            continue
        axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(node.op_type)
        if axis is None:
            axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
        bias = tensors.get(node.input[2]) if len(node.input) > 2 else None
        found.append(Layer(node, tensors[node.input[1]], bias, axis))
    return found


def sign(layer: Layer, rng: np.random.Generator) -> bool:
    """All weights of one channel with the other sign."""
    factors = np.ones(numpy_helper.to_array(layer.weight).shape[layer.axis])
    factors[rng.integers(factors.size)] = -1
    layer.scale(factors)
    return True


def axis(layer: Layer, rng: np.random.Generator) -> bool:
    """The factors of a fold along the other axis, where both have one size."""
    array = numpy_helper.to_array(layer.weight)
    if layer.node.op_type == "ConvTranspose" or array.shape[0] != array.shape[1]:
        return False
    factors = rng.uniform(0.5, 2, array.shape[0])
    layer.scale(1 / factors)
    moved = Layer(layer.node, layer.weight, layer.bias, 1 - layer.axis)
    moved.scale(factors)
    return True


def one_channel(layer: Layer, rng: np.random.Generator) -> bool:
    """One channel's factor is its neighbour's."""
    factors = np.ones(numpy_helper.to_array(layer.weight).shape[layer.axis])
    factors[rng.integers(factors.size)] = rng.choice([0.9, 0.99, 1.01, 1.3])
    layer.scale(factors)
    return True


def lost_shift(layer: Layer, rng: np.random.Generator) -> bool:
    """One channel's new bias is 0."""
    if layer.bias is None:
        return False
    array = numpy_helper.to_array(layer.bias).copy()
    place = int(rng.integers(array.size))
    if abs(array[place]) < 1e-3:
        return False
    array[place] = 0
    layer.put(layer.bias, array)
    return True


def lost_epsilon(layer: Layer, rng: np.random.Generator) -> bool:
    """The channel with the small variance is scaled as if epsilon were 0."""
    factors = np.ones(numpy_helper.to_array(layer.weight).shape[layer.axis])
    factors[0] = np.sqrt((1e-6 + 1e-5) / 1e-6)
    layer.scale(factors)
    return True


def one_weight(layer: Layer, rng: np.random.Generator) -> bool:
    """One weight of median size is off by a thousandth."""
    array = numpy_helper.to_array(layer.weight).copy()
    flat = array.reshape(-1)
    order = np.argsort(np.abs(flat))
    flat[order[order.size // 2]] *= 1.001
    layer.put(layer.weight, array)
    return True


FAULTS = (sign, axis, one_channel, lost_shift, lost_epsilon, one_weight)


@dataclass(frozen=True)
class Outcome:
    """One fold that was judged.

    Attributes:
        name: net, conditioning and fault.
        caught: the proof refuses it.
        named: it names the layer that was made wrong, and no other one.
        report: the whole answer.
    """

    name: str
    caught: bool
    named: bool
    report: ProofReport


def folded(kind: str, conditioning: float, seed: int) -> tuple[onnx.ModelProto, Folded]:
    """A network and its right fold."""
    model = NETS[kind](Net(np.random.default_rng(seed), conditioning))
    return model, fold_model(model)


def wrong(number: int) -> Outcome:
    """The ``number``-th wrong fold: nets, conditionings and faults in turn."""
    rng = np.random.default_rng([1, number])
    kinds = list(NETS) if number % 10 == 0 else [k for k in NETS if k != "wide"]
    kind = kinds[number // 6 % len(kinds)] if number % 10 else "wide"
    conditioning = CONDITIONING[number // 2 % 3]
    model, done = folded(kind, conditioning, number)
    before = {t.name: t.SerializeToString() for t in model.graph.initializer}
    after = {t.name: t.SerializeToString() for t in done.model.graph.initializer}
    changed = {
        node.name
        for node in done.model.graph.node
        if any(after.get(name) != before.get(name) for name in node.input)
    }
    found = layers(done.model, changed)
    for step in range(len(FAULTS)):
        fault = FAULTS[(number + step) % len(FAULTS)]
        layer = found[int(rng.integers(len(found)))]
        if fault(layer, rng):
            break
    report = prove(OnnxModel(model), OnnxModel(done.model), done.correspondences)
    name = f"{kind}, |mean|/sigma {conditioning:g}, {fault.__name__} of {layer.node.name}"
    named = {p.node for p in report.failures} == {layer.node.name}
    return Outcome(name, not report.passed, named, report)


def right(number: int) -> Outcome:
    """The ``number``-th right fold, in a network whose float32 noise alone can be above 1e-4."""
    kinds = [k for k in NETS if k != "wide"]
    kind = "wide" if number % 20 == 0 else kinds[number % len(kinds)]
    conditioning = (3e3, 3e4, 3e5)[number // 4 % 3]
    model, done = folded(kind, conditioning, 10_000 + number)
    report = prove(OnnxModel(model), OnnxModel(done.model), done.correspondences)
    return Outcome(f"{kind}, |mean|/sigma {conditioning:g}", not report.passed, True, report)


def show() -> None:
    """A right fold in a badly conditioned network, and the same with one weight off."""
    model, done = folded("convs", 3000.0, 7)
    edits = Edits(done.pairs, done.original, done.changed)
    report = judge(model, done.model, edits)
    print(*(f"warning: {note}" for note in report.notes), *answers(report), sep="\n")
    changed = {n.name for n in done.model.graph.node if n.op_type in LAYERS}
    one_weight(layers(done.model, changed)[1], np.random.default_rng(0))
    try:
        judge(model, done.model, edits).raise_if_failed()
    except VerificationError as error:
        print(f"\nerror: {error.message}\nhint: {error.hint}")


def main(arguments: list[str] | None = None) -> int:
    """Judge both corpora; 1 where a wrong fold passes or a right one does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wrong", type=int, default=400)
    parser.add_argument("--right", type=int, default=400)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args(arguments)
    if args.show:
        show()
        return 0
    bad = 0
    outcomes = [wrong(n) for n in range(args.wrong)]
    counts = Counter(o.name.split(", ")[2].split()[0] for o in outcomes)
    for o in outcomes:
        if not (o.caught and o.named):
            bad += 1
            nodes = [p.node for p in o.report.failures]
            print(f"MISSED {o.name}: caught {o.caught}, named {nodes}")
    least = min((max(p.ratio / p.limit for p in o.report.failures) for o in outcomes if o.caught),
                default=0.0)
    print(f"wrong folds: {sum(o.caught for o in outcomes)} of {len(outcomes)} caught, "
          f"{sum(o.caught and o.named for o in outcomes)} with the right node; "
          f"least ratio {least:.3g} of the limit; {dict(counts)}")
    outcomes = [right(n) for n in range(args.right)]
    for o in outcomes:
        if o.caught or o.report.open:
            bad += 1
            print(f"REFUSED {o.name}: {[(p.node, p.ratio, p.reason) for p in o.report.failures]}")
    worst = max((o.report.worst for o in outcomes), default=0.0)
    proven = sum(o.report.proven for o in outcomes)
    print(f"right folds: {sum(o.caught for o in outcomes)} of {len(outcomes)} refused; "
          f"{proven} regions, the worst at {worst:.2f} of the limit")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
