from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnpass.training.grouping import Source
from bnpass.training.moments import Moments


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=6), offset=st.floats(-1e4, 1e4),
       cut=st.integers(0, 6), seed=st.integers(0, 99))
def test_however_it_is_cut_the_moments_are_those_of_the_whole(sizes, offset, cut, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [offset + torch.randn(n, 3, 2, generator=generator, dtype=torch.float64)
             for n in sizes]
    first, second = Moments(), Moments()
    for number, part in enumerate(parts):
        (first if number < cut else second).add(part)
    first.merge(second)
    whole = torch.cat(parts)
    mean, var = first.result("pooled")
    assert first.count == 2 * sum(sizes)
    torch.testing.assert_close(mean, whole.mean((0, 2)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(var, whole.var((0, 2), correction=0), rtol=1e-7, atol=0)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12), size=st.integers(2, 40))
def test_regrouping_keeps_every_sample_in_order(sizes, size) -> None:
    total = sum(sizes)
    batches = [b for (b,) in Source(list(torch.arange(total).split(sizes))).batches(size)]
    assert torch.equal(torch.cat(batches), torch.arange(total))
    counts = [len(b) for b in batches]
    assert max(counts) <= size + (size == 2)
    assert min(counts) >= max(min(total, 2), min(total, size) // 2)


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 300), size=st.integers(2, 40), seed=st.integers(0, 9))
def test_an_array_is_dealt_evenly_and_shuffled(total, size, seed) -> None:
    batches = [b for (b,) in Source(torch.arange(total), seed=seed).batches(size)]
    assert sorted(torch.cat(batches).tolist()) == list(range(total))
    counts = [len(b) for b in batches]
    assert max(counts) <= size + (size == 2)
    assert min(counts) >= min(total, 2)
    assert max(counts) - min(counts) <= 1
