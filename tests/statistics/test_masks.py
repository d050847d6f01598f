"""Padding: what a mask leaves out of statistics, and how padding is noticed without one."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnpass.data.masks import Fit, fit, padded
from bnpass.data.protocol import MASK
from bnpass.nn.masks import counting
from bnpass.nn.norms import by_what_counts
from bnpass.statistics.onnx_engine import calibrate_onnx
from bnpass.statistics.torch_engine import calibrate

RNG = np.random.default_rng(8)
LENGTHS = RNG.integers(2, 10, 64)
COUNTED = np.arange(9) < LENGTHS[:, None]
X = RNG.normal(3, 2, size=(64, 5, 9)).astype(np.float32)
PADDED = np.where(COUNTED[:, None], X, 0)
ALONE = X.swapaxes(1, 2)[COUNTED][:, :, None]  # a network without neighbours sees the same


class Pointwise(nn.Module):
    """Two BNs behind maps of single positions, for ``(n, 5, t)``."""

    def __init__(self, kind: str = "1d") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)
        self.first, self.second = nn.BatchNorm1d(6), nn.BatchNorm1d(4)
        self.flat = kind == "flat"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.movedim(1, 2)
        if self.flat:
            h = self.first(self.a(rows).reshape(-1, 6)).relu()
            return self.second(self.b(h))
        h = self.first(self.a(rows).movedim(1, 2)).relu()
        return self.second(self.b(h.movedim(1, 2)).movedim(1, 2))


ONNX = """<ir_version: 9, opset_import: ["" : 17]> g (KIND[N, 5, T] x) => (KIND[N, 4, T] y) {
  h = Conv(x, w) n = BatchNormalization(h, g, b, m, v) r = Relu(n) k = Conv(r, u)
  y = BatchNormalization(k, g2, b2, m2, v2)
}"""


def file(kind: type) -> onnx.ModelProto:
    word = {np.float32: "float", np.float16: "float16"}[kind]
    model = onnx.parser.parse_model(ONNX.replace("KIND", word))
    rng = np.random.default_rng(1)
    shapes = {"w": (6, 5, 1), "u": (4, 6, 1)}
    for end, c in (("", 6), ("2", 4)):
        shapes |= {name + end: (c,) for name in "gbmv"}
    for name, shape in shapes.items():
        values = np.ones(shape) if name[0] == "v" else rng.normal(size=shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(kind), name))
    return model


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("method", ["pooled", "exact"])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_file_sees_only_what_counts(method: str, kind: type) -> None:
    batches = [{"x": PADDED[i : i + 16].astype(kind), MASK: COUNTED[i : i + 16]}
               for i in range(0, 64, 16)]
    ours = weights(calibrate_onnx(file(kind), batches, method=method))
    alone = weights(calibrate_onnx(file(kind), [ALONE.astype(kind)], method=method))
    counted = weights(calibrate_onnx(file(kind), [PADDED.astype(kind)], method=method))
    limit = 1e-5 if kind == np.float32 else 2e-3
    for name in ("m", "v", "m2", "v2"):
        np.testing.assert_allclose(ours[name], alone[name], rtol=limit, atol=limit)
        assert not np.allclose(ours[name], counted[name], rtol=0.02)


@pytest.mark.parametrize("method", ["pooled", "exact", "paper"])
@pytest.mark.parametrize("shape", ["1d", "flat"])
def test_a_module_sees_only_what_counts(method: str, shape: str) -> None:
    batch = {"x": torch.from_numpy(PADDED), MASK: torch.from_numpy(COUNTED)}
    ours = calibrate(Pointwise(shape), [batch], method=method)
    alone = calibrate(Pointwise(shape), [torch.from_numpy(ALONE)], method=method)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, alone.get_buffer(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_a_training_step_is_that_of_what_counts(affine: bool) -> None:
    ours, theirs = (nn.BatchNorm1d(5, affine=affine).train() for _ in range(2))
    x = torch.from_numpy(PADDED).requires_grad_()
    alone = torch.from_numpy(X.swapaxes(1, 2)[COUNTED]).requires_grad_()
    weight = torch.from_numpy(RNG.normal(size=alone.shape).astype(np.float32))
    with counting(torch.from_numpy(COUNTED)):
        out = by_what_counts(ours, x).movedim(1, 2)[torch.from_numpy(COUNTED)]
    expected = theirs(alone)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    inner = x.grad.movedim(1, 2)
    torch.testing.assert_close(inner[torch.from_numpy(COUNTED)], alone.grad, rtol=1e-4, atol=1e-5)
    assert not inner[torch.from_numpy(~COUNTED)].any()
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name), rtol=1e-5, atol=1e-6)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)
    ours.eval()
    with counting(torch.from_numpy(COUNTED)):
        torch.testing.assert_close(by_what_counts(ours, x), F.batch_norm(
            x, ours.running_mean, ours.running_var, ours.weight, ours.bias))


def test_how_a_mask_lies_on_a_value(caplog: pytest.LogCaptureFixture) -> None:
    assert fit((4, 7), (4, 3, 7)) is Fit.LEADING
    assert fit((4, 7), (4, 7, 3), -1) is Fit.LEADING
    assert fit((4,), (4, 3, 7)) is Fit.LEADING  # whole samples
    assert fit((4, 7), (4, 3, 7, 2)) is Fit.LEADING
    assert fit((4, 7), (28, 3)) is Fit.FLAT
    assert fit((4, 7), (4, 3)) is Fit.ALL  # pooled: every sample counts
    assert not caplog.records
    assert fit((4, 71), (4, 3, 35)) is Fit.ALL
    assert "a mask of [71] does not fit a value of [3, 35] a sample" in caplog.text


def test_padding_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    share = 1 - COUNTED.mean()
    assert padded(PADDED) == pytest.approx(share)
    assert padded(PADDED.swapaxes(1, 2)) == pytest.approx(share)
    assert padded(np.where(COUNTED, RNG.integers(1, 50, COUNTED.shape), 0)) == pytest.approx(
        share, abs=0.01)
    assert not padded(X) and not padded(PADDED[:, 0])  # float features are no sequence
    assert not padded(np.where(np.arange(9) < 6, X, 0))  # the same everywhere: no padding
    for engine in (lambda data: calibrate_onnx(file(np.float32), data),
                   lambda data: calibrate(Pointwise(), data)):
        for data, said in (({"x": PADDED}, True), ({"x": X}, False),
                           ({"x": PADDED, MASK: COUNTED}, False)):
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                engine([data])
            assert ("look like padding" in caplog.text) is said
