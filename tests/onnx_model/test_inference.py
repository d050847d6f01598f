"""Shapes that ONNX's own inference leaves open: layers, shape arithmetic, other domains."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from bnpass.ir.arithmetic import evaluate, numbers, whole
from bnpass.ir.extents import Product, dimension, extent, over, plus, product, times
from bnpass.onnx_model import shapes
from tests.helpers import Weights, fill

DOMAINS = ', "com.microsoft": 1, "ai.onnx.ml": 3, "own": 1'


def inferred(text: str, weights: Weights | None = None, opset: int = 17) -> shapes.Known:
    """What is known of the values of a model that the checker need not know."""
    head = f'<ir_version: 8, opset_import: ["": {opset}{DOMAINS}]> g '
    model = onnx.parser.parse_model(head + text)
    for name, array in fill(weights or {}, np.random.default_rng(0)).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return shapes.infer(model)[()]


def test_sizes_are_products() -> None:
    n, t = extent("N"), extent("T")
    assert extent("2*N*3") == Product(6, ("N",))
    assert dimension(times(times(n, 5), t)) == "5*N*T"
    assert times(n, t) == times(t, n) == extent("N*T")
    assert over(times(n, 10), 5) == times(n, 2)
    assert over(times(n, 10), n) == 10
    assert over(n, 2) is None
    assert over(times(n, 3), 2) is None
    assert plus(n, times(n, 3)) == times(n, 4)
    assert plus(n, n, -1) == 0
    assert plus(n, 1) is None
    assert times(n, 0) == 0
    assert times(n, None) is None
    assert product([n, 2, t]) == Product(2, ("N", "T"))
    assert extent("N + 1") == Product(1, ("N + 1",))
    assert dimension(extent("N + 1")) == "N + 1"


def row(*entries: Any) -> np.ndarray:
    made = np.empty(len(entries), object)
    made[:] = entries
    return made


N = Product(1, ("N",))


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "expected"),
    [
        ("Mul", [row(N, 4, None), row(3, 2, 5)], {}, [Product(3, ("N",)), 8, None]),
        ("Div", [row(7, -7, Product(4, ("N",))), row(2, 2, 2)], {}, [3, -3, Product(2, ("N",))]),
        ("Div", [row(N, N), row(2, N)], {}, [None, 1]),
        ("Add", [row(N, 4), row(0, 2)], {}, [N, 6]),
        ("Sub", [row(N, 4), row(N, 5)], {}, [0, -1]),
        ("Max", [row(N, 3), row(N, 9)], {}, [N, 9]),
        ("Equal", [row(N, 4, N, None), row(-1, 4, N, 4)], {}, [False, True, True, None]),
        ("Where", [row(True, None, None), row(1, 2, 3), row(4, 2, 5)], {}, [1, 2, None]),
        ("Concat", [row(N), row(4, 5)], {"axis": 0}, [N, 4, 5]),
        ("Gather", [row(N, 4, 5), row(2, 0)], {}, [5, N]),
        ("Slice", [row(N, 4, 5, 6), row(1), row(100)], {}, [4, 5, 6]),
        ("Slice", [row(N, 4, 5, 6), row(-1), row(-100), row(0), row(-2)], {}, [6, 4]),
        ("ReduceProd", [row(2, N, 5)], {"keepdims": 1}, [Product(10, ("N",))]),
        ("Cast", [row(N, 4.0, 2.5)], {"to": "int64"}, [N, 4, 2]),
        ("Range", [numbers(np.array(n)) for n in (1, 7, 2)], {}, [1, 3, 5]),
    ],
)  # fmt: skip
def test_arithmetic(
    kind: str, inputs: list[np.ndarray], attributes: dict[str, Any], expected: list[Any]
) -> None:
    made = evaluate(kind, attributes, inputs)
    assert made is not None
    assert list(made.flat) == expected


def test_floats_are_not_divided_as_integers() -> None:
    """7/2 in floats is 3.5, whatever became of it by then."""
    as_float = evaluate("Cast", {"to": "float32"}, [row(7, N, 8)], floating=True)
    half = evaluate("Div", {}, [as_float, row(2.0, 2.0, 2.0)])
    assert half is not None
    assert list(half) == [3.5, None, 4.0]
    down = evaluate("Floor", {}, [half], floating=True)
    assert whole(down[[0, 2]] if down is not None else None) == [3, 4]


def test_a_number_and_its_own_size_cancel() -> None:
    found = inferred(
        """(float[N, T, 6] x) => (float[A, B] y)
        { s = Shape(x)  n = Gather(s, zero)  t = Gather(s, one)  m = Mul(n, t)
          u = Unsqueeze(m, axis)  k = Concat <axis = 0> (u, rest)  y = Reshape(x, k) }""",
        {"zero": np.array(0), "one": np.array(1), "axis": [0], "rest": [-1]},
    )
    assert found.dims("y") == ("N*T", 6)  # more than the names that the file gives them
    assert list(found.numbers["k"]) == [Product(1, ("N", "T")), -1]


def test_a_reshape_to_computed_sizes() -> None:
    found = inferred(
        """(float[N, T, 6] x) => (float[A, B] y)
        { s = Shape(x)  n = Slice(s, zero, one)  t = Slice(s, one, two)  m = Mul(n, t)
          k = Concat <axis = 0> (m, rest)  r = Reshape(x, k)  y = Relu(r) }""",
        {"zero": [0], "one": [1], "two": [2], "rest": [-1]},
    )
    assert found.dims("r") == ("N*T", 6)


OTHERS = [
    ("com.microsoft.Gelu(x)", ("N", 3, 8, 8)),
    ("com.microsoft.QuickGelu(x)", ("N", 3, 8, 8)),
    ("com.microsoft.FusedConv(x, W)", ("N", 4, 6, 6)),
    ("com.microsoft.FusedConv <strides = [2, 2]> (x, W)", ("N", 4, 3, 3)),
    ("own.Thing(x)", None),
]


@pytest.mark.parametrize(("call", "expected"), OTHERS)
def test_operators_of_other_domains(call: str, expected: tuple[Any, ...] | None) -> None:
    text = f"(float[N, 3, 8, 8] x) => (float[] y) {{ h = {call}  y = Relu(h) }}"
    assert inferred(text, {"W": (4, 3, 3, 3)}).dims("h") == expected


LAYERS = [
    ("Conv <pads = [1, 1, 1, 1]> (h, W)", {"W": (4, 3, 3, 3)}, (None, 4, None, None)),
    ("Conv <group = 2> (h, W)", {"W": (4, 3, 3)}, (None, 4, None)),
    ("ConvTranspose <group = 2> (h, W)", {"W": (4, 3, 3, 3)}, (None, 6, None, None)),
    ("Gemm <transB = 1> (h, W)", {"W": (7, 5)}, (None, 7)),
    ("MaxPool <kernel_shape = [2, 2]> (h)", {}, (None, None, None, None)),
]


@pytest.mark.parametrize(("call", "weights", "expected"), LAYERS)
def test_layers_say_what_they_compute(
    call: str, weights: Weights, expected: tuple[Any, ...]
) -> None:
    """Behind an operator that nobody knows; elementwise operators pass it on."""
    text = f"(float[N, 4] x) => (float[] y) {{ h = own.Thing(x)  c = {call}  y = Relu(c) }}"
    found = inferred(text, weights)
    for name in ("c", "y"):
        dims = found.dims(name)
        assert dims is not None
        assert tuple(d if isinstance(d, int) else None for d in dims) == expected
    assert not found.declared


def test_layers_say_what_they_read() -> None:
    """The input's channels are the weight's, and so are those of what leads there."""
    found = inferred(
        "(float[n, c, h, w] x) => (float[] y) { y = Conv <group = 2> (x, W) }", {"W": (4, 3, 3, 3)}
    )
    assert found.dims("x") == ("n", 6, "h", "w")


DECLARED = """(float[N, 4] x) => (float[N, 3] y)
<float[N, 5] h, float[N, 99] m>
{ h = own.Thing(x)  m = MatMul(h, W)  r = Relu(m)  y = MatMul(r, V) }"""


def test_what_the_file_declares_comes_last() -> None:
    """Of the unknown operator it is taken, and marked; of the MatMul inference knows better."""
    found = inferred(DECLARED, {"W": (5, 6), "V": (6, 3)})
    assert found.dims("h") == ("N", 5)
    assert found.dims("m") == ("N", 6)
    assert found.declared >= {"h", "m", "r"}


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_of_zero_and_below_are_unknown(size: int) -> None:
    found = inferred(
        "(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv(x, W) }", {"W": (4, 3, 3, 3)}
    )
    assert found.dims("x") == ("N", 3, 8, 8)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, [size, 8])],
            [onnx.helper.make_tensor_value_info("y", 1, [size, 8])],
        )
    )
    assert shapes.infer(model)[()].dims("y") in ((None, 8), ("unk__0", 8))


def test_inside_of_a_body() -> None:
    """Names of the graph around are known there, and a body's own shapes are followed."""
    head = f'<ir_version: 8, opset_import: ["": 17{DOMAINS}]> g '
    model = onnx.parser.parse_model(
        head
        + """(float[N, 6, 4] x, bool c) => (float[A, 4] y)
        { s = Shape(x)  n = Slice(s, zero, one)
          y = If (c) <
            then_branch = a () => (float[P, Q] p)
              { m = Mul(n, six)  k = Concat <axis = 0> (m, rest)  p = Reshape(x, k) },
            else_branch = b () => (float[P, Q] q)
              { h = own.Thing(x)  q = Gemm(h, W) }
          > }"""
    )
    given: Weights = {"zero": [0], "one": [1], "six": [6], "rest": [-1], "W": (4, 4)}
    for name, array in fill(given, np.random.default_rng(0)).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    found = shapes.infer(model)
    bodies = {place[-1][1]: known for place, known in found.items() if place}
    assert list(bodies["then_branch"].numbers["k"]) == [Product(6, ("N",)), -1]
    assert bodies["else_branch"].dims("q") is not None


@pytest.mark.parametrize("entry", [float("inf"), float("nan"), 2.5])
def test_numbers_that_are_no_whole_ones(entry: float) -> None:
    """An infinite bound is a constant like any other, and no size."""
    assert whole(row(entry)) is None
    found = inferred(
        "(float[2] x) => (float[2] y) { y = Clip(x, low) }",
        {"low": np.array(entry, np.float32)},
    )
    assert found.dims("y") == (2,)
