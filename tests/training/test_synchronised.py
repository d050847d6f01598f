from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed as dist
from torch import nn

from bnpass.nn.norms import across_processes, normalising_with


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_one_collective_forward_and_one_backward(group, monkeypatch, affine, offset) -> None:
    calls = []
    for name in ("all_gather", "all_reduce"):
        real = getattr(dist, name)
        monkeypatch.setattr(dist, name, lambda *args, real=real, name=name: (
            calls.append(name), real(*args))[1])
    torch.manual_seed(0)
    ours = nn.BatchNorm2d(3, affine=affine).double()
    theirs = copy.deepcopy(ours)
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64) + offset
    probe, inputs = torch.randn_like(x), [x.clone().requires_grad_() for _ in range(2)]
    with normalising_with([ours], across_processes):
        got = ours(inputs[0])
        (got * probe).sum().backward()
    assert calls == ["all_gather", "all_reduce"]
    want = theirs(inputs[1])
    (want * probe).sum().backward()
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-9)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)
