from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnpass.errors import InputError, UsageError
from bnpass.statistics.moments import BatchMoments, Moments, check_method
from bnpass.statistics.torch_engine import moments_of


def taken(x: np.ndarray, number: int = 0) -> BatchMoments:
    return BatchMoments(x.mean(0), x.var(0), len(x), number, len(x))


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=6), offset=st.floats(-1e4, 1e4),
       cut=st.integers(0, 6), seed=st.integers(0, 99))
def test_however_it_is_cut_the_moments_are_those_of_the_whole(sizes, offset, cut, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [offset + torch.randn(n, 3, 2, generator=generator, dtype=torch.float64)
             for n in sizes]
    first, second = Moments(), Moments()
    for number, part in enumerate(parts):
        (first if number < cut else second).add(moments_of(part))
    first.merge(second)
    whole = torch.cat(parts).numpy()
    mean, var = first.pooled
    assert first.count == 2 * sum(sizes)
    np.testing.assert_allclose(mean, whole.mean((0, 2)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(var, whole.var((0, 2)), rtol=1e-7)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_ema_is_what_torchs_batch_norm_keeps_in_training(momentum) -> None:
    norm = torch.nn.BatchNorm1d(3, momentum=momentum).double()
    norm.running_mean.fill_(2.0)
    seen = Moments(keep=True)
    batches = torch.randn(5, 20, 3, generator=torch.Generator().manual_seed(1)).double()
    start = (norm.running_mean.numpy().copy(), norm.running_var.numpy().copy())
    for number, batch in enumerate(batches):
        norm(batch)
        seen.add(taken(batch.numpy(), number))
    mean, var = seen.result("ema", "n", momentum=momentum, start=start)
    np.testing.assert_allclose(mean, norm.running_mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(var, norm.running_var.numpy(), rtol=1e-12)


def test_the_order_of_batches_survives_a_merge() -> None:
    rng = np.random.default_rng(0)
    batches = [taken(rng.normal(size=(9, 2)), number) for number in range(5)]
    one, even, odd = (Moments(keep=True) for _ in range(3))
    for batch in batches:
        one.add(batch)
        (odd if batch.number % 2 else even).add(batch)
    odd.merge(even)
    start = (np.zeros(2), np.ones(2))
    for want, got in zip(one.result("ema", "n", start=start), odd.result("ema", "n", start=start),
                         strict=True):
        np.testing.assert_array_equal(want, got)


def test_disorder_tells_sorted_from_mixed_samples() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 8)) + np.repeat(np.arange(4), 100)[:, None]
    for order, disordered in ((np.arange(400), True), (rng.permutation(400), False)):
        seen = Moments()
        for number, index in enumerate(np.split(order, 8)):
            seen.add(taken(x[index], number))
        assert (seen.disorder > 5) is disordered
    assert np.isnan(Moments().disorder)


def test_errors() -> None:
    with pytest.raises(UsageError, match="unknown method") as caught:
        check_method("poled")
    assert "pooled" in caught.value.hint
    with pytest.raises(InputError, match="no batch"):
        Moments().result("pooled", "n")
    seen = Moments()
    seen.add(BatchMoments(np.zeros(2), np.zeros(2), 1))
    with pytest.raises(InputError, match="'n' one element"):
        seen.result("pooled", "n")
