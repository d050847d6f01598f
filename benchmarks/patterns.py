"""Small models, one a place where a BatchNorm (or its spelt-out arithmetic) can fold or must not.

``PATTERNS`` is the list; each entry says how many affine operators must stay at least (the Add
behind a MatMul), and whether folding it would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from benchmarks.net import Net

IMAGE = (2, 4, 8, 8)


@dataclass(frozen=True)
class Pattern:
    """One small model.

    Attributes:
        name: what it is, as dataflow.
        make: builds it.
        stay: affine operators that are there even after the best fold.
        must_stay: the maps may not go (or need the user's word): leaving them is the right answer.
        tolerance: relative error up to which a result counts as right.
        section: where in the table of results it is counted.
    """

    name: str
    make: Callable[[], onnx.ModelProto]
    stay: int = 0
    must_stay: bool = False
    tolerance: float = 1e-4
    section: str = ""


PATTERNS: list[Pattern] = []
_SECTION = [""]


def section(title: str) -> None:
    """What the patterns that follow have in common."""
    _SECTION[0] = title


def pattern(name: str, stay: int = 0, must_stay: bool = False, tolerance: float = 1e-4
            ) -> Callable[[Callable[[], onnx.ModelProto]], Callable[[], onnx.ModelProto]]:
    """Enter a model into the list."""

    def enter(make: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
        PATTERNS.append(Pattern(name, make, stay, must_stay, tolerance, _SECTION[0]))
        return make

    return enter


def _behind(make: Callable[[Net], str], c: int = 6, shape: tuple[int, ...] = IMAGE
            ) -> onnx.ModelProto:
    """x -> make -> BN -> Relu."""
    n = Net(shape)
    return n.model(n.op("Relu", n.bn(make(n), c)))


section("behind a layer")

for _name, _options in {
    "Conv2d + BN": {}, "Conv2d without bias + BN": {"bias": False},
    "Conv2d grouped + BN": {"group": 2}, "Conv2d depthwise + BN": {"group": 4, "cout": 4},
    "ConvTranspose + BN": {"kind": "ConvTranspose"},
    "ConvTranspose grouped + BN": {"kind": "ConvTranspose", "group": 2},
    "ConvTranspose depthwise + BN": {"kind": "ConvTranspose", "group": 4, "cout": 4},
}.items():
    def _make(options: dict[str, object] = _options) -> onnx.ModelProto:
        given = {"cout": 6, **options}
        return _behind(lambda n: n.conv("x", 4, **given), int(str(given["cout"])))

    pattern(_name)(_make)

for _rank in (3, 5):
    def _make_rank(rank: int = _rank) -> onnx.ModelProto:
        return _behind(lambda n: n.conv("x", 4, 6, rank=rank), shape=(2, 4, *(5,) * (rank - 2)))

    pattern(f"Conv{_rank - 2}d + BN")(_make_rank)


@pattern("Conv with an empty bias name + BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Conv", "x", n.weight(6, 4, 3, 3), ""))


@pattern("Gemm + BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.gemm("x", 5, 6), shape=(3, 5))


@pattern("Gemm without bias, transB=0 + BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Gemm", "x", n.weight(5, 6)), shape=(3, 5))


@pattern("Gemm alpha=0.5 beta=2 + BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.gemm("x", 5, 6, alpha=0.5, beta=2.0), shape=(3, 5))


@pattern("MatMul + BN", stay=1)
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.matmul("x", 5, 6), shape=(3, 5))


@pattern("MatMul + Add + BN", stay=1)
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Add", n.matmul("x", 5, 6), n.const(n.channels(6))), shape=(3, 5))


@pattern("Linear (N,T,C) -> Transpose -> BN -> Transpose", stay=1)
def _() -> onnx.ModelProto:
    n = Net((2, 3, 5))
    y = n.op("Add", n.matmul("x", 5, 6), n.const(n.channels(6)))
    z = n.bn(n.op("Transpose", y, perm=[0, 2, 1]), 6)
    return n.model(n.op("Relu", n.op("Transpose", z, perm=[0, 2, 1])))


@pattern("Einsum + BN", stay=1)
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Einsum", "x", n.weight(5, 6), equation="ni,ij->nj"),
                   shape=(3, 5))


@pattern("Gather of an embedding table -> Transpose -> BN")
def _() -> onnx.ModelProto:
    n = Net((2, 3))
    rows = n.op("Cast", n.op("Abs", n.op("Clip", "x", n.const(-3.0), n.const(3.0))), to=7)
    y = n.op("Gather", n.weight(9, 6), rows)
    return n.model(n.op("Relu", n.bn(n.op("Transpose", y, perm=[0, 2, 1]), 6)))


@pattern("InstanceNormalization + BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("InstanceNormalization", "x", n.const(n.channels(4)),
                                  n.const(n.channels(4))), 4)


@pattern("LayerNormalization + Mul + Add")
def _() -> onnx.ModelProto:
    n = Net((2, 3, 6))
    y = n.op("LayerNormalization", "x", n.const(n.channels(6)), n.const(n.channels(6)), axis=-1)
    y = n.op("Mul", y, n.const(n.channels(6)))
    return n.model(n.op("Relu", n.op("Add", y, n.const(n.channels(6)))))


section("with structure between")


@pattern("Gemm -> Reshape (N,C,H,W) -> BN (GAN)")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.reshape(n.gemm("x", 5, 24), -1, 6, 2, 2), shape=(3, 5))


@pattern("Concat(Conv, Conv) -> BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Concat", n.conv("x", 4, 4), n.conv("x", 4, 2), axis=1))


@pattern("Add(Conv, Conv) -> BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Add", n.conv("x", 4, 6), n.conv("x", 4, 6)))


@pattern("Sub(Conv, Conv) -> BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Sub", n.conv("x", 4, 6), n.conv("x", 4, 6)))


for _kind, _attributes in {
    "AveragePool": {"kernel_shape": [2, 2], "strides": [2, 2]}, "GlobalAveragePool": {},
    "ReduceMean": {"axes": [2, 3]}, "ReduceSum": {"axes_input": [2, 3]},
}.items():
    def _make_pool(kind: str = _kind, attributes: dict[str, object] = _attributes
                   ) -> onnx.ModelProto:
        def layer(n: Net) -> str:
            given = dict(attributes)
            axes = given.pop("axes_input", None)
            more = [n.const(np.array(axes, np.int64))] if axes else []
            return str(n.op(kind, n.conv("x", 4, 6), *more, **given))

        return _behind(layer)

    pattern(f"Conv -> {_kind} -> BN")(_make_pool)


@pattern("Conv -> GlobalAveragePool -> Flatten -> BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Flatten", n.op("GlobalAveragePool", n.conv("x", 4, 6))))


@pattern("Conv -> Resize -> BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Resize", n.conv("x", 4, 6), "",
                                  n.const(np.array([1, 1, 2, 2]), np.float32)))


@pattern("Conv -> MaxPool -> BN, gamma > 0")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.op("MaxPool", n.conv("x", 4, 6), kernel_shape=[2, 2], strides=[2, 2])
    return n.model(n.op("Relu", n.bn(y, 6, positive=True)))


@pattern("Conv -> MaxPool -> BN, some gamma < 0", must_stay=True)
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("MaxPool", n.conv("x", 4, 6), kernel_shape=[2, 2]))


@pattern("Conv -> Pad(edge) -> BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Pad", n.conv("x", 4, 6), n.const(np.array([0, 0, 1, 1] * 2)),
                                  mode="edge"))


@pattern("Conv -> Split -> BN, BN")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    a, b = n.op("Split", n.conv("x", 4, 6), n.const(np.array([4, 2])), outputs=2, axis=1)
    return n.model(n.op("Relu", n.bn(a, 4)), n.op("Relu", n.bn(b, 2)))


@pattern("Conv -> Slice of channels -> BN, others read plain")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.conv("x", 4, 6)
    one = n.const(np.array([1]))
    a = n.op("Slice", y, n.const(np.array([0])), n.const(np.array([4])), one)
    b = n.op("Slice", y, n.const(np.array([4])), n.const(np.array([6])), one)
    return n.model(n.op("Relu", n.bn(a, 4)), n.op("Relu", b))


@pattern("Conv -> Transpose -> Transpose -> BN")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Transpose", n.op("Transpose", n.conv("x", 4, 6),
                                                    perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2]))


@pattern("Conv -> DepthToSpace, BN in front")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    return n.model(n.op("DepthToSpace", n.bn(n.conv("x", 4, 8), 8), blocksize=2))


@pattern("Conv -> SpaceToDepth -> BN, equal over a block")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.op("SpaceToDepth", n.conv("x", 4, 3), blocksize=2)
    params = [n.const(np.tile(n.rng.uniform(0.5, 1.5, 3), 4)) for _ in range(4)]
    return n.model(n.op("Relu", n.bn(y, 12, params=params)))


@pattern("Conv -> Squeeze -> Unsqueeze -> BN")
def _() -> onnx.ModelProto:
    n = Net((2, 4, 1, 8))
    axis = n.const(np.array([2]))
    y = n.op("Unsqueeze", n.op("Squeeze", n.conv("x", 4, 6), axis), axis)
    return n.model(n.op("Relu", n.bn(y, 6)))


for _kind in ("Identity", "Dropout"):
    def _make_pass(kind: str = _kind) -> onnx.ModelProto:
        return _behind(lambda n: n.op(kind, n.conv("x", 4, 6)))

    pattern(f"Conv -> {_kind} -> BN")(_make_pass)


section("in front of a layer")


def _in_front(make: Callable[[Net, str], str], shape: tuple[int, ...] = IMAGE,
              positive: bool = False) -> onnx.ModelProto:
    """x -> Sigmoid -> BN -> make."""
    n = Net(shape)
    return n.model(make(n, n.bn(n.op("Sigmoid", "x"), shape[1], positive=positive)))


@pattern("BN -> Conv without padding")
def _() -> onnx.ModelProto:
    return _in_front(lambda n, x: n.conv(x, 4, 6, pads=[0] * 4))


@pattern("BN -> Conv padded", must_stay=True)
def _() -> onnx.ModelProto:
    return _in_front(lambda n, x: n.conv(x, 4, 6))


@pattern("trap: BN -> Conv auto_pad=SAME_UPPER", must_stay=True)
def _() -> onnx.ModelProto:
    return _in_front(lambda n, x: n.conv(x, 4, 6, auto_pad="SAME_UPPER"))


@pattern("BN -> depthwise Conv without padding")
def _() -> onnx.ModelProto:
    return _in_front(lambda n, x: n.conv(x, 4, 4, group=4, pads=[0] * 4))


@pattern("BN -> ConvTranspose, borders cut off")
def _() -> onnx.ModelProto:
    return _in_front(lambda n, x: n.conv(x, 4, 6, kind="ConvTranspose", pads=[2] * 4))


@pattern("BN -> Gemm")
def _() -> onnx.ModelProto:
    return _in_front(lambda n, x: n.gemm(x, 5, 6), (3, 5))


@pattern("BN -> MatMul", stay=1)
def _() -> onnx.ModelProto:
    return _in_front(lambda n, x: n.matmul(x, 5, 6), (3, 5))


@pattern("BN -> Flatten -> Gemm")
def _() -> onnx.ModelProto:
    return _in_front(lambda n, x: n.gemm(n.op("Flatten", x), 256, 6))


@pattern("BN -> GlobalAveragePool -> Flatten -> Gemm")
def _() -> onnx.ModelProto:
    return _in_front(lambda n, x: n.gemm(n.op("Flatten", n.op("GlobalAveragePool", x)), 4, 6))


@pattern("BN -> two Convs")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.bn(n.op("Sigmoid", "x"), 4)
    return n.model(n.conv(y, 4, 6, pads=[0] * 4), n.conv(y, 4, 2, pads=[0] * 4))


@pattern("BN -> LSTM")
def _() -> onnx.ModelProto:
    n = Net((3, 5))
    y = n.op("Unsqueeze", n.bn(n.op("Sigmoid", "x"), 5), n.const(np.array([1])))
    w, r = n.weight(1, 12, 5), n.weight(1, 12, 3)
    n.op("LSTM", y, w, r, outputs=2, hidden_size=3)
    return n.model(n.nodes[-1].output[0])


@pattern("Conv -> BN -> Relu -> Conv padded, skip reads Conv", must_stay=True)
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.conv("x", 4, 4)
    z = n.conv(n.op("Relu", n.bn(y, 4)), 4, 4)
    return n.model(n.op("Add", y, z))


@pattern("Conv -> BN -> Relu -> Conv, gamma > 0, shift back")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.op("MaxPool", n.conv("x", 4, 4), kernel_shape=[3, 3])
    return n.model(n.conv(n.op("Relu", n.bn(y, 4, positive=True)), 4, 6))


@pattern("Conv -> Relu -> BN -> Conv without padding")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    return n.model(n.conv(n.bn(n.op("Relu", n.conv("x", 4, 4)), 4), 4, 6, pads=[0] * 4))


section("in another spelling")


@pattern("BN -> BN behind Conv")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.bn(n.conv("x", 4, 6), 6))


@pattern("Conv + Mul + Add, constants right")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    return n.model(n.op("Relu", n.per_channel("Add", n.per_channel("Mul", n.conv("x", 4, 6), 6),
                                              6)))


@pattern("Conv + Mul + Add, constants left")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.per_channel("Mul", n.conv("x", 4, 6), 6, left=True)
    return n.model(n.op("Relu", n.per_channel("Add", y, 6, left=True)))


@pattern("Conv + BN + Mul + Add (Caffe's Scale)")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.per_channel("Mul", n.bn(n.conv("x", 4, 6), 6), 6)
    return n.model(n.op("Relu", n.per_channel("Add", y, 6)))


@pattern("Conv + Sub + Div(Sqrt(Add)) + Mul + Add")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.per_channel("Sub", n.conv("x", 4, 6), 6)
    var = n.const(n.rng.uniform(0.5, 1.5, (6, 1, 1)))
    y = n.op("Div", y, n.op("Sqrt", n.op("Add", var, n.const(np.array(1e-5)))))
    return n.model(n.op("Relu", n.per_channel("Add", n.per_channel("Mul", y, 6), 6)))


@pattern("ConvTranspose + Mul + Add")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.per_channel("Mul", n.conv("x", 4, 6, kind="ConvTranspose"), 6)
    return n.model(n.op("Relu", n.per_channel("Add", y, 6)))


@pattern("Gemm + Mul + Add")
def _() -> onnx.ModelProto:
    n = Net((3, 5))
    y = n.per_channel("Mul", n.gemm("x", 5, 6), 6, rank=1)
    return n.model(n.op("Relu", n.per_channel("Add", y, 6, rank=1)))


@pattern("Mul (1,C,1,1) -> Conv padded")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    return n.model(n.conv(n.per_channel("Mul", n.op("Sigmoid", "x"), 4), 4, 6))


@pattern("Conv -> Transpose to NHWC -> Mul -> Add")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.op("Transpose", n.conv("x", 4, 6), perm=[0, 2, 3, 1])
    y = n.per_channel("Mul", y, 6, rank=1)
    return n.model(n.op("Relu", n.per_channel("Add", y, 6, rank=1)))


@pattern("weights from Constant nodes, BN behind a Conv")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.op("Relu", n.bn(n.conv("x", 4, 6), 6))
    model = n.model(y)
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes += list(model.graph.node)
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pattern("weight behind a Transpose of a constant")
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Gemm", "x", n.op("Transpose", n.weight(6, 5), perm=[1, 0])),
                   shape=(3, 5))


section("with shared weights and names")


@pattern("two Convs share W, one BN")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    w = n.weight(6, 4, 3, 3)
    a, b = n.conv("x", 4, 6, w=w), n.conv("x", 4, 6, w=w)
    return n.model(n.op("Relu", n.bn(a, 6)), n.op("Relu", b))


@pattern("a Conv's bias is read elsewhere too", stay=1)
def _() -> onnx.ModelProto:
    n = Net((2, 4, 8, 6))
    y = n.conv("x", 4, 6)
    return n.model(n.op("Relu", n.bn(y, 6)), n.op("Mul", "x", n.nodes[0].input[2]))


@pattern("two BNs share their parameters")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    params = n.statistics(6)
    a, b = (n.bn(n.conv("x", 4, 6), 6, params=params) for _ in range(2))
    return n.model(n.op("Relu", a), n.op("Relu", b))


@pattern("an initializer already has the name W_bias")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    other = n.const(n.channels(4, rank=4), name="W_bias")
    y = n.conv("x", 4, 6, bias=False, w=n.weight(6, 4, 3, 3, name="W"))
    return n.model(n.op("Relu", n.bn(y, 6)), n.op("Pow", n.op("Sigmoid", "x"), other))


section("in float16")


@pattern("fp16 Conv + BN", tolerance=2e-2)
def _() -> onnx.ModelProto:
    n = Net(IMAGE, dtype=np.float16)
    return n.model(n.op("Relu", n.bn(n.conv("x", 4, 6), 6)))


@pattern("fp16 Gemm + BN with fp32 statistics", tolerance=2e-2)
def _() -> onnx.ModelProto:
    n = Net((3, 5), dtype=np.float16)
    params = n.statistics(6)[:2] + [n.const(n.channels(6, positive=True), np.float32)
                                    for _ in range(2)]
    return n.model(n.op("Relu", n.bn(n.gemm("x", 5, 6), 6, params=params)))


@pattern("fp16 Conv + BN, variance 1e-7", tolerance=2e-2)
def _() -> onnx.ModelProto:
    n = Net(IMAGE, dtype=np.float16)
    params = [*n.statistics(6)[:3], n.const(np.full(6, 1e-7))]
    return n.model(n.op("Relu", n.bn(n.conv("x", 4, 6), 6, params=params, epsilon=1e-7)))


section("inside If and functions")


def _branch(n: Net) -> onnx.GraphProto:
    """A body with Conv + BN on the outer x; its weights are the outer graph's."""
    y = n.bn(n.conv("x", 4, 6), 6)
    nodes = n.nodes[:]
    del n.nodes[:]
    elem = helper.np_dtype_to_tensor_dtype(n.dtype)
    return helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info(y, elem, None)])


@pattern("Conv + BN inside If")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    branches = _branch(n), _branch(n)
    flag = n.op("Greater", n.op("ReduceMax", "x", keepdims=0), n.const(np.array(0.0)))
    return n.model(n.op("If", flag, then_branch=branches[0], else_branch=branches[1]))


@pattern("Conv + BN inside a local function")
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    names = ["x", n.weight(6, 4, 3, 3), *n.statistics(6)]
    body = [helper.make_node("Conv", ["a", "w"], ["c"], pads=[1] * 4),
            helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])]
    opset = [helper.make_opsetid("", 17)]
    n.functions.append(helper.make_function("local", "ConvBN", ["a", "w", "s", "b", "m", "v"],
                                            ["y"], body, opset))
    return n.model(n.op("Relu", n.op("ConvBN", *names, domain="local")))


section("what must stay")


@pattern("trap: MatMul 3-D + BN on its rows, not its columns", must_stay=True)
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.matmul("x", 5, 6), 6, (2, 6, 5))


@pattern("trap: MatMul -> Reshape -> BN on other channels", must_stay=True)
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.reshape(n.matmul("x", 8, 8), 2, 8, 2), 8, (4, 8))


@pattern("trap: MatMul -> Transpose -> BN on its rows", must_stay=True)
def _() -> onnx.ModelProto:
    return _behind(lambda n: n.op("Transpose", n.matmul("x", 8, 8)), 8, (8, 8))


@pattern("trap: training_mode=1", must_stay=True)
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.conv("x", 4, 6)
    n.op("BatchNormalization", y, *n.statistics(6), outputs=3, training_mode=1)
    return n.model(n.op("Relu", n.nodes[-1].output[0]))


@pattern("Conv with a second reader", must_stay=True)
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.conv("x", 4, 6)
    return n.model(n.op("Relu", n.bn(y, 6)), n.op("Relu", y))


@pattern("Conv that is also a graph output", must_stay=True)
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.conv("x", 4, 6)
    return n.model(n.op("Relu", n.bn(y, 6)), y)


@pattern("weights that callers may override (graph inputs)", must_stay=True)
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    y = n.conv("x", 4, 6)
    n.overridable(n.nodes[0].input[1])
    params = [n.overridable(name) for name in n.statistics(6)]
    return n.model(n.op("Relu", n.bn(y, 6, params=params)))


@pattern("standalone BN", must_stay=True)
def _() -> onnx.ModelProto:
    n = Net(IMAGE)
    return n.model(n.bn("x", 4))
