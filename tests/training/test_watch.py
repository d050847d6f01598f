from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from bnpass.errors import UsageError
from bnpass.training.watch import Watch
from tests.training.nets import mlp


def test_percentiles_of_a_known_value() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Identity(), nn.Tanh()))
    samples = torch.arange(101.0).reshape(101, 1).expand(101, 2) * torch.tensor([1.0, -1.0])
    ((name, low, middle, high),) = Watch(gm, ("0",), samples, unit=0).take()
    assert name == "0"
    assert (low, middle, high) == pytest.approx((15.0, 50.0, 85.0))
    ((_, low, middle, high),) = Watch(gm, ("0",), samples, unit=1).take()
    assert (low, middle, high) == pytest.approx((-85.0, -50.0, -15.0))


def test_norms_use_the_batch_and_keep_their_statistics() -> None:
    gm = mlp().train()
    before = {k: v.clone() for k, v in gm.state_dict().items()}
    samples = 5 + 3 * torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    ((_, low, middle, high),) = Watch(gm, ("1",), samples).take()
    assert -1.2 < low < -0.9 < -0.1 < middle < 0.1 < 0.9 < high < 1.2
    assert all(torch.equal(v, before[k]) for k, v in gm.state_dict().items())
    assert gm.get_submodule("1").training


def test_units_by_index() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Identity(), nn.Tanh()))
    samples = torch.arange(101.0).reshape(101, 1).expand(101, 2) * torch.tensor([1.0, -1.0])
    rows = Watch(gm, ("0[1]", "0[0]", "0"), samples).take()
    assert [name for name, *_ in rows] == ["0[1]", "0[0]", "0"]
    assert rows[0][1:] == pytest.approx((-85.0, -50.0, -15.0))
    assert rows[1][1:] == pytest.approx((15.0, 50.0, 85.0))
    assert rows[2][2] == pytest.approx(0.0)
    with pytest.raises(UsageError, match="shape"):
        Watch(gm, ("0[2]",), samples)
