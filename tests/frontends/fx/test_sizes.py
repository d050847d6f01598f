"""Sizes, None and constants: one site is left out where it has to be, the rest goes on."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import bnpass
from tests.frontends.fx.helpers import close, inputs, norms, prepared, randomize, run


class Tokens(nn.Module):
    """A block that gets the image's sizes as plain numbers."""

    def __init__(self, loops):
        super().__init__()
        self.loops, self.c = loops, nn.Linear(4, 4)
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x, height, width):
        h = torch.sigmoid(x @ self.w)
        if self.loops:
            for i in range(height):
                h = h + i
        return self.c(h).view(-1, height, width, 4)


class Image(nn.Module):
    def __init__(self, loops):
        super().__init__()
        self.a, self.block, self.o = nn.Conv2d(3, 4, 3, padding=1), Tokens(loops), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        h = self.block(h.flatten(2).transpose(1, 2), *h.shape[2:])
        return self.o(torch.tanh(h).mean((1, 2)))


X, LARGER = inputs((2, 3, 8, 8)), inputs((3, 3, 16, 8))


def test_sizes_that_a_forward_hands_on_stay_open():
    torch.manual_seed(0)
    net = Image(loops=False).double().eval()
    made = bnpass.insert(net, X, init="preserve")
    assert len(norms(made)) == 3 and isinstance(made.block, fx.GraphModule)
    for x in (X, LARGER):
        close(run(made, x), run(net, x), 1e-12)
    folded = bnpass.fold(randomize(made))
    close(run(folded, LARGER), run(made, LARGER))


def test_a_site_that_would_fix_a_size_is_left_out_and_the_others_are_made(caplog):
    torch.manual_seed(0)
    net = Image(loops=True).double().eval()
    with caplog.at_level(logging.WARNING, "bnpass"):
        made = bnpass.insert(net, X, init="preserve")
    plan = bnpass.insert(net, X, plan_only=True)
    reason = next(s.reason for s in plan.skipped if s.node == "sigmoid")
    assert "height is fixed at 8" in reason and f"{__file__}:" in reason and "block" in reason
    assert reason in caplog.text
    assert len(norms(made)) == len(plan.sites) == 2 and type(made.block) is Tokens
    for x in (X, LARGER):
        close(run(made, x), run(net, x), 1e-12)


class Scaled(nn.Module):
    """A BatchNorm that folds in place, and a constant that would ask for a graph."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.g = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, x):
        return self.b(F.relu(self.n(self.a(x)))) * self.g * 0.5


def test_a_constant_alone_does_not_cost_the_class():
    module = prepared(Scaled())
    folded, plan = bnpass.fold(module, X), bnpass.fold(module, X, plan_only=True)
    assert type(folded) is Scaled and not norms(folded)
    close(run(folded, X), run(module, X))
    assert [e.node for e in plan.folded] == ["n"]
    assert ["would become a graph" in e.reason for e in plan.refused] == [True]
    asked = bnpass.fold(module, X, only=("*",))
    assert isinstance(asked, fx.GraphModule)
    assert not bnpass.fold(module, X, only=("*",), plan_only=True).refused
    close(run(asked, X), run(module, X))


def test_a_norm_goes_by_a_constant_that_would_cost_the_class():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(), nn.BatchNorm2d(4), nn.ReLU())
    module = prepared(net)
    folded, plan = bnpass.fold(module, X), bnpass.fold(module, X, plan_only=True)
    assert type(folded[1]) is Doubled and not norms(folded)
    assert [e.kind for e in plan.refused] == ["Mul"]
    close(run(folded, X), run(module, X))


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2


class Optional(nn.Module):
    """As an encoder and decoder: what stands in the middle may be left out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)
        self.seen = []

    def forward(self, ids, mask=None, other=None):
        self.seen.append((mask is not None, other is not None))
        return torch.relu(self.b(torch.relu(self.a(ids)))) + other


@pytest.mark.parametrize("named", [False, True])
def test_calibrate_with_an_input_left_out_in_the_middle(named):
    x, other = torch.randn(32, 3), torch.randn(32, 4)
    example = {"ids": x, "other": other} if named else (x, None, other)
    made = bnpass.insert(Optional(), example)
    for batch in ((x, None, other), ((x, None, other), torch.zeros(32))):
        made.seen.clear()
        bnpass.calibrate(made, [batch])
        assert set(made.seen) == {(False, True)}
    close(made.a.output_bn.running_mean, (x @ made.a.weight.T).mean(0), 1e-5)


class NormThenAct(nn.BatchNorm2d):
    """A norm that calls its base's forward."""

    def __init__(self, n):
        super().__init__(n)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(super().forward(x))


def test_what_remains_of_a_norm_that_calls_its_base_stays():
    module = prepared(nn.Sequential(nn.Conv2d(3, 4, 3), NormThenAct(4), nn.Conv2d(4, 2, 1)))
    folded = bnpass.fold(module, X)
    assert not norms(folded) and type(folded[1].act) is nn.SiLU
    close(run(folded, X), run(module, X))


def test_a_norm_goes_by_what_a_hook_multiplies():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double().eval()
    module[0].register_forward_hook(lambda m, args, out: out * 2)
    made = bnpass.insert(module, X, init="preserve")
    close(run(made, X), run(module, X), 1e-12)
    folded = bnpass.fold(randomize(made))
    assert len(folded[0]._forward_hooks) == 1 and not norms(folded)
    close(run(folded, X), run(made, X))


class Without(nn.Module):
    """A product outside of autocast."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.w, self.o = kind, nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 2)

    def forward(self, x):
        off = torch.autocast("cpu", enabled=False)
        with off if self.kind == "autocast" else torch.enable_grad():
            h = x @ self.w
        return self.o(torch.relu(h))


@pytest.mark.parametrize("kind", ["autocast", "enable_grad"])
def test_a_context_that_changes_nothing_now_is_not_lost(kind):
    plan = bnpass.insert(Without(kind), inputs((4, 8))[0].float(), plan_only=True)
    assert not plan.sites and f"enters {kind}" in plan.skipped[0].reason
    assert torch.autocast.__enter__ is not None
    with torch.autocast("cpu"), torch.enable_grad():
        assert torch.is_grad_enabled()
