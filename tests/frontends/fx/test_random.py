"""Random small networks: insert, random statistics, fold, compare in float64."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import bnpass
from tests.frontends.fx.helpers import close, norms, randomize, run

LAYERS = ("conv", "grouped", "transposed", "depthwise", "branches", "residual", "dense", "shuffle")
ACTS = (nn.ReLU, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.Hardswish)
BETWEEN = ("", "", "max", "average", "dropout", "upsample")


class Net(nn.Module):
    """Blocks of (layer, something in between, activation), then a linear head."""

    def __init__(self, blocks):
        super().__init__()
        self.kinds = [kind for kind, *_ in blocks]
        self.between = [b for _, b, *_ in blocks]
        self.layers = nn.ModuleList(_layers(kind, bias) for kind, _, _, bias in blocks)
        self.acts = nn.ModuleList(ACTS[a]() for *_, a, _ in blocks)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for kind, between, layer, act in zip(
            self.kinds, self.between, self.layers, self.acts, strict=True
        ):
            y = _apply(kind, layer, x)
            y = _between(between, y)
            x = act(y)
        return self.head(x.mean((2, 3)))


def _layers(kind, bias):
    conv = {
        "conv": lambda: [nn.Conv2d(4, 4, 3, padding=1, bias=bias)],
        "grouped": lambda: [nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=bias)],
        "depthwise": lambda: [nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1)],
        "transposed": lambda: [nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2, bias=bias)],
        "branches": lambda: [nn.Conv2d(4, 2, 1, bias=bias), nn.Conv2d(4, 2, 3, padding=1)],
        "residual": lambda: [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, bias=bias)],
        "dense": lambda: [nn.Linear(4, 4, bias=bias)],
        "shuffle": lambda: [nn.Conv2d(4, 4, 3, padding=1, bias=bias)],
    }
    return nn.ModuleList(conv[kind]())


def _apply(kind, layer, x):
    if kind == "branches":
        return torch.cat([part(x) for part in layer], 1)
    if kind == "residual":
        return layer[0](x) + layer[1](x)
    if kind == "dense":
        return layer[0](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    for part in layer:
        x = part(x)
    return nn.functional.channel_shuffle(x, 2) if kind == "shuffle" else x


def _between(kind, y):
    return {
        "": lambda: y,
        "max": lambda: nn.functional.max_pool2d(y, 2, 1),
        "average": lambda: nn.functional.avg_pool2d(y, 2, 1),
        "dropout": lambda: nn.functional.dropout(y, 0.3, False),
        "upsample": lambda: nn.functional.interpolate(y, scale_factor=2)[:, :, :6, :6],
    }[kind]()


BLOCK = st.tuples(
    st.sampled_from(LAYERS), st.sampled_from(BETWEEN), st.integers(0, len(ACTS) - 1), st.booleans()
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(BLOCK, min_size=1, max_size=4), st.integers(0, 99))
def test_what_is_inserted_folds_back(blocks, seed):
    torch.manual_seed(seed)
    net = Net(blocks).double().eval()
    x = (torch.randn(2, 4, 9, 9, dtype=torch.float64),)
    made = bnpass.insert(net, x, init="preserve")
    close(run(made, x), run(net, x))
    randomize(made, seed)
    folded = bnpass.fold(made)
    assert not norms(folded)
    close(run(folded, x), run(made, x))


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(BLOCK, min_size=1, max_size=3), st.integers(0, 99), st.data())
def test_norms_anywhere_fold_or_stay_but_never_change_the_result(blocks, seed, data):
    torch.manual_seed(seed)
    net = Net(blocks)
    for i, act in enumerate(list(net.acts)):
        norm = nn.BatchNorm2d(4)
        order = (act, norm) if data.draw(st.booleans()) else (norm, act)
        net.acts[i] = nn.Sequential(*order)
    net = randomize(net.double().eval(), seed)
    x = (torch.randn(2, 4, 9, 9, dtype=torch.float64),)
    close(run(bnpass.fold(net, x), x), run(net, x))
