"""Shape arithmetic: Python numbers in the module, the same results as onnxruntime's."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from bnpass.importer import to_torch  # noqa: E402
from bnpass.importer.functions import shape  # noqa: E402
from bnpass.importer.functions.common import host_tensor  # noqa: E402
from tests.importer.nets import ort_run, relative  # noqa: E402
from tests.importer.test_parameters import model, normal  # noqa: E402

NUMBERS = {
    "zero": np.zeros((), np.int64), "last": np.array(-1), "zeros": np.zeros(1, np.int64),
    "one": np.ones(1, np.int64), "two": np.array([2]), "three": np.array([3]),
    "rest": np.array([-1]), "pair": np.array([0, 2]), "most": np.array([2**63 - 1]),
    "minus": np.array([-2]), "none": np.zeros(0, np.int64), "six": np.array([6, 6]),
}  # fmt: skip
PLAIN = "(float[N, 6, H] x) => (float[A, B] y)"

CASES = {
    "a size and -1": "s = Shape(x)  n = Gather(s, zeros)  t = Concat <axis = 0> (n, rest)",
    "a scalar": """s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, zeros)
        t = Concat <axis = 0> (u, rest)""",
    "a scalar reshaped": """s = Shape(x)  n = Gather(s, zero)  u = Reshape(n, rest)
        t = Concat <axis = 0> (u, rest)""",
    "from behind": "s = Shape(x)  n = Gather(s, last)  u = Unsqueeze(n, zeros) "
    "t = Concat <axis = 0> (rest, u)",
    "a slice": "s = Shape(x)  n = Slice(s, zeros, one)  t = Concat <axis = 0> (n, rest)",
    "slices from behind": """s = Shape(x)  a = Slice(s, minus, most)  b = Slice(a, one, most)
        t = Concat <axis = 0> (rest, b)""",
    "a slice backwards": """s = Shape(x)  r = Slice(s, rest, minus, zeros, rest)
        t = Concat <axis = 0> (rest, r)""",
    "by attribute": "s = Shape <start = 1, end = 2> (x)  t = Concat <axis = 0> (rest, s)",
    "a product": """s = Shape(x)  a = Slice(s, one, two)  b = Slice(s, two, three)  p = Mul(a, b)
        t = Concat <axis = 0> (rest, p)""",
    "a quotient": """s = Shape(x)  a = Slice(s, one, two)  q = Div(a, two)
        t = Concat <axis = 0> (rest, q)""",
    "a vector of them": """s = Shape(x)  a = Gather(s, pair)  d = Mul(a, two)  q = Div(d, two)
        n = Slice(q, zeros, one)  t = Concat <axis = 0> (n, rest)""",
    "the number of elements": """c = Size(x)  s = Shape(x)  n = Gather(s, zero)  q = Div(c, n)
        u = Unsqueeze(q, zeros)  t = Concat <axis = 0> (rest, u)""",
    "a sum and a difference": """s = Shape(x)  n = Slice(s, zeros, one)  a = Add(n, two)
        b = Sub(a, two)  t = Concat <axis = 0> (b, rest)""",
    "cast": """s = Shape(x)  c = Cast <to = 7> (s)  n = Slice(c, zeros, one)
        t = Concat <axis = 0> (n, rest)""",
    "through float": """s = Shape(x)  c = Cast <to = 1> (s)  r = Sqrt(c)  m = Mul(r, r)
        i = Round(m)  b = Cast <to = 7> (i)  n = Slice(b, zeros, one)
        t = Concat <axis = 0> (n, rest)""",
    "a shape of a shape": """s = Shape(x)  f = ConstantOfShape(s)  g = Shape(f)
        n = Slice(g, zeros, one)  t = Concat <axis = 0> (n, rest)""",
}


def targets(gm: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in gm.graph.nodes]


@pytest.mark.parametrize("name", CASES)
def test_reshapes_with_computed_sizes(name: str) -> None:
    used = {k: v for k, v in NUMBERS.items() if k in CASES[name]}
    proto = model(f"{PLAIN} {{ {CASES[name]}  y = Reshape(x, t) }}", used)
    gm = to_torch(proto)
    for size in ((2, 6, 5), (3, 6, 4), (1, 6, 2)):
        x = normal(*size)
        made, wanted = gm(torch.from_numpy(x)), ort_run(proto, x)[0]
        assert made.shape == wanted.shape
        assert np.array_equal(made.numpy(), wanted)
    if name not in ("through float", "a slice backwards"):
        assert not {shape.shape, shape.size, host_tensor, torch.cat} & set(targets(gm))


def test_sizes_that_nothing_reads_are_not_asked_for() -> None:
    proto = model(f"{PLAIN} {{ {CASES['a scalar']}  y = Reshape(x, t) }}",
                  {k: v for k, v in NUMBERS.items() if k in CASES["a scalar"]})  # fmt: skip
    assert targets(to_torch(proto)).count("size") == 1


def test_sizes_are_results_and_operands_too() -> None:
    """As a graph output, as a number in float arithmetic, and beside a computed integer."""
    proto = model(
        """(float[N, H] x, int64[1] k) => (int64[2] s, float[N, H] y, int64[2] t, int64 n) {
        s = Shape(x)  n = Gather(s, zero)  f = Cast <to = 1> (n)  y = Div(x, f)  t = Add(s, k) }""",
        {"zero": NUMBERS["zero"]},
    )
    x, k = normal(3, 4), np.array([5])
    made = to_torch(proto)(torch.from_numpy(x), torch.from_numpy(k))
    for ours, theirs in zip(made, ort_run(proto, x, k), strict=True):
        assert ours.shape == theirs.shape
        assert np.array_equal(ours.numpy(), theirs)


def test_a_batch_of_none_keeps_its_axes() -> None:
    """A size that is 0 when it runs copies the axis, as a 0 in the file does."""
    proto = model(
        """(float[N, 4, 2] x) => (float[A, B] y) {
        s = Shape(x)  n = Slice(s, zeros, one)  t = Concat <axis = 0> (n, eight)
        y = Reshape(x, t) }""",
        NUMBERS | {"eight": np.array([8])},
    )
    assert to_torch(proto)(torch.zeros(0, 4, 2)).shape == (0, 8)


def test_other_readers_of_sizes() -> None:
    """Expand, Tile, Range, ConstantOfShape, Slice and Resize with sizes of their input."""
    proto = model(
        """(float[N, 2, H, W] x) => (float[N, 2, A, B] y) {
        s = Shape(x)  n = Slice(s, zeros, one)  w = Slice(s, three, most)  hw = Slice(s, two, most)
        e1 = Concat <axis = 0> (n, ones3)  c = ConstantOfShape(e1)  e = Expand(c, s)
        wn = Squeeze(w, zeros)  r = Range(zero, wn, step)  f = Cast <to = 1> (r)
        a = Add(x, e)  b = Add(a, f)  d = Mul(hw, twos)  nc = Slice(s, zeros, two)
        z = Concat <axis = 0> (nc, d)  u = Resize <mode = "nearest"> (b, , , z)
        starts = Sub(w, one)  y = Slice(u, starts, most, three) }""",
        NUMBERS | {"ones3": np.ones(3, np.int64), "twos": np.array([2, 2]), "step": np.array(1)},
    )
    gm = to_torch(proto, batch="keep")
    for size in ((2, 2, 3, 4), (1, 2, 5, 2)):
        x = normal(*size)
        assert relative(gm(torch.from_numpy(x)), ort_run(proto, x)[0]) < 1e-6
