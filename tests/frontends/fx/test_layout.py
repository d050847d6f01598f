"""How values lie in memory behind an insertion and behind a fold: a user's ``view`` goes on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnpass
from bnpass.frontends.fx.layout import normalised, order_of
from tests.frontends.fx.helpers import close, inputs, norms, prepared, randomize, run

TOKENS = inputs((2, 6, 6))


class Turned(nn.Module):
    """A nonlinearity on what is turned, and a view that only its layout allows."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.c, self.w = kind, nn.Conv1d(6, 4, 1), nn.Parameter(torch.randn(6, 4))
        self.l, self.o = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        if self.kind == "convolution":
            h = torch.tanh(self.c(x.transpose(1, 2)).transpose(1, 2))
            return self.o(h.transpose(1, 2).view(len(x), -1)[:, :4])
        if self.kind == "product":
            h = torch.relu((x.transpose(0, 1) @ self.w).transpose(0, 1))
            return self.o(h.transpose(0, 1).view(-1, 4))
        if self.kind == "einsum":
            h = torch.relu(torch.einsum("ntc,cd->ndt", x, self.w))
            return self.o(h.transpose(1, 2).view(-1, 4))
        h = torch.relu(self.l(x[:, ::2]).permute(1, 0, 2))  # "linear"
        return self.o(h.transpose(0, 1).view(-1, 4))


@pytest.mark.parametrize("kind", ["convolution", "product", "einsum", "linear"])
def test_a_view_behind_an_inserted_norm(kind):
    torch.manual_seed(0)
    net = Turned(kind).double().eval()
    made = bnpass.insert(net, TOKENS, init="preserve")
    assert norms(made)
    for x in (TOKENS, inputs((5, 9, 6))) if kind != "convolution" else (TOKENS,):
        close(run(made, x), run(net, x), 1e-12)
    made.train()(*TOKENS).square().mean().backward()
    assert all(m.weight.grad is not None for m in norms(made))
    made.eval()
    folded = bnpass.fold(randomize(made))
    assert not norms(folded)
    close(run(folded, TOKENS), run(made, TOKENS), 1e-9)


class Heads(nn.Module):
    """BatchNorm over the channels of turned tokens, and a view behind it."""

    def __init__(self):
        super().__init__()
        self.l, self.n, self.o = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(24, 2)

    def forward(self, x):
        h = self.n(self.l(x).transpose(1, 2))
        return self.o(torch.relu(h).view(len(x), -1))


def test_a_view_behind_a_norm_that_is_folded_away():
    module = prepared(Heads())
    folded = bnpass.fold(module, TOKENS)
    assert type(folded) is Heads and not norms(folded)
    close(run(folded, TOKENS), run(module, TOKENS))


@pytest.mark.parametrize("axis", ["second", "last"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 6), (4, 3, 2, 5, 6)])
def test_a_norm_leaves_the_layout_as_it_is(shape, axis):
    rank = len(shape)
    generator = torch.Generator().manual_seed(0)
    for order in {tuple(torch.randperm(rank, generator=generator).tolist()) for _ in range(6)}:
        for gap in (1, 2):
            held = torch.randn([gap * shape[i] for i in order], generator=generator).double()
            held = held[tuple(slice(None, None, gap) for _ in order)]
            x = held.permute([order.index(i) for i in range(rank)])
            at = 1 if axis == "second" else rank - 1
            kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
            kind = kinds[rank] if at == 1 else nn.BatchNorm1d
            norm = kind(x.shape[at]).double()
            mean = x.mean([i for i in range(rank) if i != at], keepdim=True)
            var = x.var([i for i in range(rank) if i != at], keepdim=True, correction=0)
            got = normalised(norm, x, at)
            close(got, (x - mean) / (var + norm.eps).sqrt(), 1e-12)
            assert order_of(got) == order_of(x)
