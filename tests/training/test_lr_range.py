from __future__ import annotations

from dataclasses import replace

import pytest

from bnpass.errors import UsageError
from bnpass.training import TrainConfig, lr_range_test, train
from tests.training.nets import blobs, mlp

CONFIG = TrainConfig(batch_size=40, device="cpu")


def test_it_suggests_a_rate_that_learns_and_leaves_the_network_alone() -> None:
    gm = mlp()
    before = {k: v.clone() for k, v in gm.state_dict().items()}
    found = lr_range_test(gm, blobs(800), CONFIG, high=100.0)
    assert all((v == before[k]).all() for k, v in gm.state_dict().items())
    assert found.lrs[0] == pytest.approx(1e-4)
    assert list(found.lrs) == sorted(found.lrs)
    assert len(found.lrs) == len(found.losses) == len(found.smoothed)
    assert 0.01 < found.suggestion < 30
    assert found.steepest <= 3 * found.suggestion
    history = train(gm, blobs(800), blobs(200, seed=1),
                    replace(CONFIG, lr=found.suggestion, steps=60))
    assert history.accuracy > 0.9


def test_it_stops_where_the_loss_blows_up() -> None:
    found = lr_range_test(mlp(norm=False, classes=1), blobs(800), replace(CONFIG, loss="mse"),
                          high=1e6)
    assert max(found.lrs) < 1e5
    assert max(found.smoothed) <= 4 * min(found.smoothed)


def test_same_seed_same_result_and_bad_ranges() -> None:
    assert lr_range_test(mlp(), blobs(), CONFIG) == lr_range_test(mlp(), blobs(), CONFIG)
    with pytest.raises(UsageError, match="range test from 1 to 1"):
        lr_range_test(mlp(), blobs(), CONFIG, low=1.0, high=1.0)
