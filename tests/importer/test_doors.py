"""Weights in functions and in Constant nodes, inputs that are given, branches that they decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import bnpass  # noqa: E402
from bnpass.errors import InputError, UnsupportedError  # noqa: E402
from tests.importer.nets import ort_run, relative  # noqa: E402
from tests.importer.test_parameters import model, norm, normal  # noqa: E402


def constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


FUNCTIONS = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
agraph (float[N, 4] x) => (float[N, 4] y) {{ {calls} }}
<domain: "own", opset_import: ["": 17]> Layer (X) => (Y)
{{ c = MatMul(X, W)  d = Add(c, B)  e = BatchNormalization(d, g, b, m, v)  Y = Tanh(e) }}
<domain: "own", opset_import: ["": 17, "own": 1]> Twice (X) => (Y)
{{ k = Constant <value_floats = [0.1, 0.2, 0.3, 0.4]> ()  h = own.Layer(X)  s = Add(h, k)
   Y = own.Layer(s) }}"""

CALLS = [
    "y = own.Layer(x)",
    "a = own.Layer(x)  y = own.Layer(a)",
    "a = own.Twice(x)  y = own.Layer(a)",
]


def with_functions(calls: str) -> onnx.ModelProto:
    """Functions whose weights are Constant nodes of their bodies."""
    proto = onnx.parser.parse_model(FUNCTIONS.format(calls=calls))
    layer = proto.functions[0]
    arrays = {"W": normal(4, 4), "B": normal(4), **norm(4)}
    for name, array in arrays.items():
        layer.node.insert(0, constant(name, array))
    return proto


@pytest.mark.parametrize("calls", CALLS)
def test_a_function_is_one_layer_whoever_calls_it(calls: str) -> None:
    """One parameter a weight; trained and written back into the function that is still there."""
    proto = with_functions(calls)
    x = normal(5, 4)
    gm = bnpass.to_torch(proto)
    assert len(list(gm.parameters())) == 4 + ("Twice" in calls)
    assert relative(gm.eval()(torch.from_numpy(x)), ort_run(proto, x)[0]) < 1e-5
    optimizer = torch.optim.SGD(gm.train().parameters(), lr=0.1)
    gm(torch.from_numpy(x)).square().sum().backward()
    optimizer.step()
    written = bnpass.write_back(gm.eval(), proto)
    onnx.checker.check_model(written, full_check=True)
    assert [f.name for f in written.functions] == [f.name for f in proto.functions]
    after = gm(torch.from_numpy(x))
    assert relative(after, ort_run(written, x)[0]) < 1e-5
    assert relative(after, ort_run(proto, x)[0]) > 1e-3


def test_a_statistic_of_a_function_that_others_read_is_refused() -> None:
    proto = with_functions(CALLS[1])
    add = next(n for n in proto.functions[0].node if n.op_type == "Add")
    add.input[1] = "m"
    gm = bnpass.to_torch(proto).train()
    gm(torch.from_numpy(normal(5, 4)))
    with pytest.raises(InputError, match="inline the functions"):
        bnpass.write_back(gm, proto)


def test_a_function_and_an_initializer_of_one_name() -> None:
    """own.Layer.W is what the importer calls the function's weight, and a weight of the file."""
    proto = with_functions(CALLS[0])
    proto.graph.initializer.append(numpy_helper.from_array(normal(4, 4), "own.Layer.W"))
    proto.graph.node.insert(0, onnx.helper.make_node("MatMul", ["x", "own.Layer.W"], ["first"]))
    proto.graph.node[1].input[0] = "first"
    gm = bnpass.to_torch(proto).eval()
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter.mul_(1.25)
    written, x = bnpass.write_back(gm, proto), normal(5, 4)
    assert relative(gm(torch.from_numpy(x)), ort_run(written, x)[0]) < 1e-5


def test_weights_in_constant_nodes_train_from_a_file(tmp_path: Path) -> None:
    """Bytes of large ones are not kept twice; shapes are inferred after small ones were read."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 11]>
        agraph (float[N, 3, 8, 8] x) => (float[N, 5] y)
        { c = Conv <pads = [1, 1, 1, 1]> (x, W, B)  r = Relu(c)  s = Shape(r)
          n = Slice(s, zero, one)  t = Concat <axis = 0> (n, rest)  f = Reshape(r, t)
          q = Shape(f)  k = Slice(q, zero, one)  e = Concat <axis = 0> (k, rest)
          h = Reshape(f, e)  y = MatMul(h, V) }"""
    )
    small = {"zero": [0], "one": [1], "rest": [-1]}
    arrays = {name: np.array(v, np.int64) for name, v in small.items()}
    arrays |= {n: rng.normal(size=s).astype(np.float32)
               for n, s in (("W", (4, 3, 3, 3)), ("B", (4,)), ("V", (256, 5)))}  # fmt: skip
    for name, array in arrays.items():
        proto.graph.node.insert(0, constant(name, array))
    onnx.save(proto, tmp_path / "m.onnx")
    gm = bnpass.to_torch(tmp_path / "m.onnx")
    x = normal(2, 3, 8, 8)
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    gm(torch.from_numpy(x)).square().mean().backward()
    optimizer.step()
    written = bnpass.write_back(gm, tmp_path / "m.onnx")
    y = gm.eval()(torch.from_numpy(x))
    assert relative(y, ort_run(written, x)[0]) < 1e-5
    assert relative(y, ort_run(proto, x)[0]) > 1e-4
    assert not written.graph.initializer


def branching() -> onnx.ModelProto:
    """Two layers of which the sampling rate chooses one, as speech models have it."""
    return model(
        """(float[N, 4] x, int64 sr) => (float[N, 3] y)
        { c = Equal(sr, rate)
          y = If (c) <
            then_branch = yes () => (float[N, 3] a) { a = MatMul(x, W) },
            else_branch = no () => (float[N, 3] b) { h = MatMul(x, V)  b = Tanh(h) }
          > }""",
        {"W": normal(4, 3), "V": normal(4, 3), "rate": np.array(16000)},
    )


@pytest.mark.parametrize(("rate", "weight"), [(16000, "W"), (8000, "V")])
def test_an_input_that_is_given_decides_a_branch(rate: int, weight: str) -> None:
    proto, x = branching(), normal(5, 4)
    gm = bnpass.to_torch(proto, inputs={"sr": rate}).eval()
    assert [name for name, _ in gm.named_parameters()] == [weight]
    assert gm.meta["bnpass"]["inputs"] == ["x"]
    assert relative(gm(torch.from_numpy(x)), ort_run(proto, x, np.array(rate))[0]) < 1e-6
    with torch.no_grad():
        gm.get_parameter(weight).mul_(2)
    written = bnpass.write_back(gm, proto)
    assert relative(gm(torch.from_numpy(x)), ort_run(written, x, np.array(rate))[0]) < 1e-6


def test_what_to_give_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"depends on sr.*inputs=\{'sr': value\}"):
        bnpass.to_torch(branching())


@pytest.mark.parametrize(
    ("values", "message"),
    [({"rs": 1}, "no input 'rs'"), ({"sr": 1.5}, "int64"), ({"sr": [1, 2]}, "shape")],
)
def test_wrong_values_of_inputs(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bnpass.to_torch(branching(), inputs=values)
