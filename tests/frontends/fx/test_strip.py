"""LRN and Dropout out of torch modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnpass
from tests.frontends.fx.helpers import Fn, close, inputs, run


def net():
    def forward(s, x):
        x = s.drop(F.relu(s.a(x)))
        x = F.local_response_norm(s.lrn(x), 3)
        return s.b(F.dropout(x, 0.3, s.training))

    return Fn(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 2, 1), drop=nn.Dropout2d(0.4),
              lrn=nn.LocalResponseNorm(5)).double()  # fmt: skip


X = inputs((2, 3, 8, 8))


def test_both_go():
    module = net()
    stripped = bnpass.strip(module, example_inputs=X)
    assert stripped.training and not hasattr(stripped, "drop") and not hasattr(stripped, "lrn")
    close(run(stripped, X), run(lambda x: module.b(F.relu(module.a(x))), X), 0)
    assert set(stripped.state_dict()) == set(module.state_dict())


def test_only_one_kind():
    module = net().eval()
    stripped = bnpass.strip(module, ("dropout",), X)
    assert hasattr(stripped, "lrn") and not hasattr(stripped, "drop")
    close(run(stripped, X), run(module, X), 0)


def test_another_ratio():
    stripped = bnpass.strip(net(), ("dropout",), X, dropout=0.1)
    assert stripped.drop.p == pytest.approx(0.1)
    (node,) = (n for n in stripped.graph.nodes if n.target is F.dropout)
    assert pytest.approx(node.kwargs.get("p", node.args[1:2] and node.args[1])) == 0.1
    assert not torch.equal(stripped(*X), stripped(*X))
