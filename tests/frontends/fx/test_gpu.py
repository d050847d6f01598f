"""Modules on a GPU: everything stays there, autocast, channels_last and torch.compile work."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnpass
from tests.frontends.fx.helpers import norms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def exact():
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2, groups=2),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 16),
        nn.Sigmoid(), nn.Linear(16, 4),
    ).cuda()  # fmt: skip


def batch(seed=0, count=32):
    g = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=g, device="cuda")


def on_gpu(module):
    return all(t.is_cuda for t in (*module.parameters(), *module.buffers()))


def step(gm, x):
    optimizer = torch.optim.SGD(gm.parameters(), 0.05)
    with torch.autocast("cuda", torch.bfloat16):
        loss = gm(x).float().square().mean()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("compiled", [False, True])
def test_insert_train_calibrate_fold(layout, compiled, tmp_path):
    x = batch().contiguous(memory_format=layout)
    gm = bnpass.insert(net(), (x,)).to(memory_format=layout)
    assert len(norms(gm)) == 3 and on_gpu(gm)
    gm.train()
    step(torch.compile(gm) if compiled else gm, x)
    labels = torch.arange(32, device="cuda") % 4
    bnpass.calibrate(gm, [(batch(1), labels), (batch(2), labels)])
    assert not gm.training and on_gpu(gm)
    folded = bnpass.fold(gm)
    assert not norms(folded) and on_gpu(folded)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), gm(x), rtol=1e-4, atol=1e-5)
    path = bnpass.export(folded, (x,), tmp_path / "folded.onnx")
    assert on_gpu(folded)
    assert bnpass.verify(folded.cpu(), path).passed


def test_preserving_initial_values():
    x = batch()
    module = net().eval()
    gm = bnpass.insert(module, (x,), init="preserve").eval()
    calibrated = bnpass.insert(module, (x,), init="calibrated", data=[batch(1)]).eval()
    with torch.no_grad():
        for found in (gm, calibrated):
            assert len(norms(found)) == 3 and on_gpu(found)
            torch.testing.assert_close(found(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_in_half_precision_stays_in_it(dtype):
    x = batch()
    gm = bnpass.insert(net(), (x,))
    bnpass.calibrate(gm, [batch(1)])
    with torch.no_grad():
        want = gm(x)
        folded = bnpass.fold(gm.to(dtype))
        assert {p.dtype for p in folded.parameters()} == {dtype} and on_gpu(folded)
        error = (folded(x.to(dtype)).float() - want).abs().max() / want.abs().max()
    assert error < 40 * torch.finfo(dtype).eps
