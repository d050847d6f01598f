from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import bnpass
from bnpass.data import from_arrays
from bnpass.data.normalisation import fold_normalisation, take_over
from bnpass.errors import InputError, UsageError
from bnpass.pipeline.datasets import input_spec

MEAN, STD = (0.4, -0.2), (0.5, 2.0)
# A value is called as a name that would be a likely choice for a new one.
CONV = """<ir_version: 9, opset_import: ["" : 20]>
g (float[N, 2, 7, 7] x) => (float[N, 3, M, M] y) {{
    x_centred = Conv<{attributes}>(x, w, b)
    y = Relu(x_centred)
}}"""
RESIDUAL = """<ir_version: 9, opset_import: ["" : 20]>
g (float[N, 2, 7, 7] x) => (float[N, 2, 7, 7] y) { r = Relu(x)  y = Add(x, r) }"""


def conv(attributes: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(CONV.format(attributes=attributes))
    rng = np.random.default_rng(0)
    for name, shape in (("w", (3, 2, 3, 3)), ("b", (3,))):
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = bnpass.session(model)
    return session.run(None, {session.get_inputs()[0].name: x.astype(np.float32)})[0]


@pytest.mark.parametrize(("model", "nodes"), [
    (conv("pads = [0, 0, 0, 0]"), ["Conv", "Relu"]),
    (conv("pads = [1, 1, 1, 1]"), ["Sub", "Conv", "Relu"]),
    (conv('auto_pad = "SAME_UPPER"'), ["Sub", "Conv", "Relu"]),
    (onnx.parser.parse_model(RESIDUAL), ["Sub", "Div", "Relu", "Add"]),
])
def test_same_function_of_raw_samples(model, nodes):
    x = np.random.default_rng(1).normal(size=(5, 2, 7, 7))
    mean, std = (np.reshape(v, (1, 2, 1, 1)) for v in (MEAN, STD))
    before = model.SerializeToString()
    folded = fold_normalisation(model, MEAN, STD)
    assert model.SerializeToString() == before
    onnx.checker.check_model(folded, full_check=True)
    assert [n.op_type for n in folded.graph.node] == nodes
    np.testing.assert_allclose(outputs(folded, x), outputs(model, (x - mean) / std),
                               rtol=1e-4, atol=1e-5)


def test_one_number_for_all_channels():
    model = conv("pads = [0, 0, 0, 0]")
    x = np.random.default_rng(1).normal(size=(5, 2, 7, 7))
    folded = fold_normalisation(model, [0.1307], [0.3081])
    np.testing.assert_allclose(outputs(folded, x), outputs(model, (x - 0.1307) / 0.3081),
                               rtol=1e-4, atol=1e-5)


def test_the_data_leaves_to_the_model_what_the_model_does():
    model = conv("pads = [0, 0, 0, 0]")
    x = np.random.default_rng(1).integers(0, 256, (6, 2, 7, 7)).astype(np.uint8)
    data = from_arrays(x, inputs=input_spec(model), mean=MEAN, std=STD)
    folded, raw = take_over(model, data)
    assert raw.recipe["mean"] is raw.recipe["std"] is raw.recipe["scale"] is None
    np.testing.assert_allclose(outputs(folded, raw.take(np.arange(6))[0]),
                               outputs(model, data.take(np.arange(6))[0]), rtol=1e-4, atol=1e-5)
    same, kept = take_over(folded, raw)
    assert same is folded and kept is raw


def test_what_cannot_be():
    model = conv("pads = [0, 0, 0, 0]")
    with pytest.raises(UsageError, match="std"):
        fold_normalisation(model, [0.5], [0.0])
    with pytest.raises(InputError, match="3 numbers"):
        fold_normalisation(model, [0, 0, 0], [1, 1, 1])
    integers = onnx.parser.parse_model(RESIDUAL.replace("float[", "int32["))
    with pytest.raises(InputError, match="float"):
        fold_normalisation(integers, [0.5], [1.0])
