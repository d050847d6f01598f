"""Under torch.compile, autocast, channels_last, DistributedDataParallel, and copies."""

from __future__ import annotations

import copy

import torch
from torch import nn

import bnpass
from tests.frontends.fx.helpers import close, norms, prepared, randomize, run


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 5),
    )  # fmt: skip


X = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def test_compile():
    made = bnpass.insert(net(), X)
    compiled = torch.compile(made, backend="aot_eager")
    compiled(*X).square().mean().backward()
    assert made.get_submodule("0.output_bn").weight.grad is not None
    made.eval()
    folded = bnpass.fold(randomize(made))
    with torch.no_grad():
        close(torch.compile(folded, backend="aot_eager")(*X), made(*X), 1e-4)


def test_autocast():
    made = bnpass.insert(net(), X)
    with torch.autocast("cpu", torch.bfloat16):
        made(*X).float().square().mean().backward()
        randomize(made.eval())
        want, got = made(*X), bnpass.fold(made)(*X)
    assert got.dtype == want.dtype == torch.bfloat16
    close(got.float(), want.float(), 0.05)


def test_bfloat16_and_half_weights_are_rounded_once():
    for dtype in (torch.bfloat16, torch.float16):
        made = randomize(bnpass.insert(net().eval(), X))
        exact = bnpass.fold(copy.deepcopy(made).to(dtype).double())
        folded = bnpass.fold(made.to(dtype))
        for a, b in zip(folded.parameters(), exact.parameters(), strict=True):
            assert a.dtype == dtype and torch.equal(a, b.to(dtype))


def test_channels_last():
    made = bnpass.insert(net().to(memory_format=torch.channels_last), X, init="preserve")
    x = X[0].contiguous(memory_format=torch.channels_last)
    folded = bnpass.fold(randomize(made.eval()))
    close(folded(x), made(x), 1e-4)


def test_distributed_wrapper_in_the_middle(tmp_path):
    made = bnpass.insert(net(), X)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(made)
        wrapped(*X).square().mean().backward()
        inner = wrapped.module
    finally:
        torch.distributed.destroy_process_group()
    assert not norms(bnpass.fold(inner.eval()))


def test_copies_and_state_dicts(tmp_path):
    made = randomize(bnpass.insert(net(), X))
    torch.save(made.state_dict(), tmp_path / "state.pt")
    again = copy.deepcopy(bnpass.insert(net(), X))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    made.eval(), again.eval()
    close(run(again, X), run(made, X), 0)
    close(run(bnpass.fold(again), X), run(bnpass.fold(made), X), 0)


def test_several_inputs_and_nested_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.n = nn.Linear(3, 4), nn.Linear(5, 4), nn.BatchNorm1d(4)

        def forward(self, x, y=None, *, scale=2.0):
            z = self.n(self.a(x) + self.b(y))
            return {"z": z, "both": (z * scale, [x])}

    module = prepared(Two())
    x = torch.randn(2, 3).double(), torch.randn(2, 5).double()
    folded, want = bnpass.fold(module, x), module(*x)
    got = folded(*x)
    close(got["z"], want["z"])
    close(got["both"][0], want["both"][0])
    assert not norms(folded)


def test_gradients_flow_to_what_was_inserted():
    made = bnpass.insert(net(), X)
    made(*X).square().mean().backward()
    assert all(p.grad is not None for p in made.parameters())
