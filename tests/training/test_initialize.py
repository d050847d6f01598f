from __future__ import annotations

import math

import pytest
import torch

from bnpass.errors import UsageError
from bnpass.training import calibrate, initialize, train
from bnpass.training.config import TrainConfig
from tests.training.nets import blobs, convnet, mlp


def test_weights_have_the_wanted_spread_and_biases_are_zero() -> None:
    gm = initialize(mlp(width=200), "glorot", seed=1)
    weight = gm.get_parameter("0.weight")
    bound = math.sqrt(6 / 216)
    assert 0.95 * bound < weight.abs().max() <= bound
    assert gm.get_parameter("8.bias").eq(0).all()
    wide = initialize(mlp(width=200), "glorot_normal", gain=4.0)
    spread = float(wide.get_parameter("0.weight").detach().std())
    assert spread == pytest.approx(4 * math.sqrt(2 / 216), rel=0.05)
    small = initialize(convnet(), "gaussian", std=0.02)
    assert float(small.get_parameter("3.weight").detach().std()) == pytest.approx(0.02, rel=0.2)


def test_norms_start_anew() -> None:
    gm = mlp()
    fresh = {k: v.clone() for k, v in gm.get_submodule("1").state_dict().items()}
    train(gm, blobs(), None, TrainConfig(steps=3, device="cpu"))
    initialize(calibrate(gm, blobs()))
    for name, value in gm.get_submodule("1").state_dict().items():
        assert torch.equal(value, fresh[name])


def test_same_seed_same_weights_with_and_without_bn() -> None:
    a, b, c = (initialize(mlp(norm=norm), seed=seed) for norm, seed in ((1, 1), (1, 1), (1, 2)))
    assert torch.equal(a.get_parameter("0.weight"), b.get_parameter("0.weight"))
    assert not torch.equal(a.get_parameter("0.weight"), c.get_parameter("0.weight"))
    plain = initialize(mlp(norm=False), seed=1)
    assert torch.equal(a.get_parameter("0.weight"), plain.get_parameter("0.weight"))
    assert plain.get_parameter("0.bias").eq(0).all()


def test_unknown_scheme() -> None:
    with pytest.raises(UsageError, match="unknown initialisation") as caught:
        initialize(mlp(), "glorott")
    assert "glorot" in caught.value.hint
