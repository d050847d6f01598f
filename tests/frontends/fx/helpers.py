"""What the tests of the torch frontend share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import bnpass


def norms(module):
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def randomize(module, seed=0, positive=False):
    """Random gamma, beta and statistics for every BN; a third of the gammas negative."""
    g = torch.Generator().manual_seed(seed)
    for m in norms(module):
        n = m.num_features
        sign = torch.where(torch.rand(n, generator=g) < 0.3, -1.0, 1.0)
        sign = sign.abs() if positive else sign
        with torch.no_grad():
            m.running_mean.copy_(torch.randn(n, generator=g))
            m.running_var.copy_(torch.rand(n, generator=g) + 0.5)
            if m.weight is not None:
                m.weight.copy_((torch.rand(n, generator=g) + 0.5) * sign)
                m.bias.copy_(torch.randn(n, generator=g))
    return module


def inputs(*shapes, seed=1):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes)


def prepared(module, seed=0, positive=False):
    return randomize(module.double().eval(), seed, positive)


def close(a, b, tolerance=1e-9):
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    for x, y in pairs:
        assert x.shape == y.shape
        assert (x - y).abs().max() <= tolerance * max(1.0, float(y.abs().max()))


def run(module, x):
    with torch.no_grad():
        return module(*[v.clone() for v in x])


def check_fold(module, x, left=0, **options):
    """Fold, compare in float64 on two batch sizes, and count what is left."""
    state = {k: v.clone() for k, v in module.state_dict().items()}
    want = run(module, x)
    folded = bnpass.fold(module, x, **options)
    close(run(folded, x), want)
    more = tuple(torch.cat([v, v[:1] + 1]) for v in x)
    close(run(folded, more), run(module, more))
    assert len(norms(folded)) == left
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    return folded


class Fn(nn.Module):
    """A module made of submodules and a function of (self, *inputs)."""

    def __init__(self, forward, **parts):
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            elif isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x):
        return self._forward(self, x)
