from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import bnpass

TEXT = """<ir_version: 9, opset_import: ["" : 17]>
  g (float[N, 3, 6, 6] x) => (float[N, 2, 2, 2] y)
  <float[4, 3, 3, 3] w1, float[4] one, float[4] zero, float[4] m1, float[4] v1,
   float[2, 4, 3, 3] w2, float[2] ones, float[2] zeros, float[2] m2, float[2] v2> {
    c1 = Conv(x, w1)
    n1 = BatchNormalization<momentum = 0.8>(c1, one, zero, m1, v1)
    r = Sigmoid(n1)
    c2 = Conv(r, w2)
    y = BatchNormalization(c2, ones, zeros, m2, v2)
  }"""


def network() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(3)
    del model.graph.initializer[:]
    shapes = {"w1": (4, 3, 3, 3), "w2": (2, 4, 3, 3), "one": 4, "zero": 4, "m1": 4, "v1": 4,
              "ones": 2, "zeros": 2, "m2": 2, "v2": 2}
    for name, shape in shapes.items():
        values = np.abs(rng.normal(size=shape)) if name[0] in "ov" else rng.normal(size=shape)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def statistics(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name[0] in "mv"}


@pytest.mark.parametrize("method", ["pooled", "paper", "ema", "exact"])
@pytest.mark.parametrize("kind", ["batches", "array", "mappings"])
def test_both_engines_give_the_same_numbers(method, kind) -> None:
    x = np.random.default_rng(0).normal(1, 2, (96, 3, 6, 6)).astype(np.float32)
    parts = [x[i:i + 16] for i in range(0, 96, 16)]
    data = {"batches": parts, "array": x, "mappings": [{"x": p} for p in parts]}[kind]
    model = network()
    first = bnpass.calibrate(model, data, method=method, batch_size=32)
    module = bnpass.calibrate(bnpass.to_torch(model), data, method=method, batch_size=32)
    second = statistics(bnpass.write_back(module, model))
    for name, value in statistics(first).items():
        np.testing.assert_allclose(second[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    # ... and the statistics are others than before.
    assert any(not np.allclose(v, statistics(model)[n]) for n, v in second.items())


def test_ema_does_not_depend_on_the_largest_batch_allowed() -> None:
    x = torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    one, other = (bnpass.calibrate(network(), list(x.split(16)), method="ema", batch_size=size)
                  for size in (16, 1000))
    assert one.SerializeToString() == other.SerializeToString()


def test_exact_does_not_depend_on_the_batches() -> None:
    x = np.random.default_rng(0).normal(1, 2, (96, 3, 6, 6)).astype(np.float32)
    found = [statistics(bnpass.calibrate(network(), x, method="exact", batch_size=size))
             for size in (4, 96)]
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, atol=1e-6)
    pooled = statistics(bnpass.calibrate(network(), x, batch_size=4))
    assert not np.allclose(pooled["v2"], found[0]["v2"], rtol=1e-3)
    module = bnpass.calibrate(bnpass.to_torch(network()), iter([x]), method="exact")
    norms = [m for m in module.modules() if hasattr(m, "running_var")]
    # The layer behind the calibrated one gives what the next one was told that it sees.
    kept = {}
    hook = norms[1].register_forward_pre_hook(lambda _, args: kept.update(x=args[0]))
    module(torch.from_numpy(x))
    hook.remove()
    torch.testing.assert_close(kept["x"].var((0, 2, 3), correction=0), norms[1].running_var)
