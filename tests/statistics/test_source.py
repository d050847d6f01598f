from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnpass.data.protocol import Slot, Takes
from bnpass.errors import InputError
from bnpass.statistics.source import Source

ONE = Takes((Slot("x"),))


def batches(source: Source, size: int, **options):
    return [call.args[0] for call in source.batches(size, **options)]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12), size=st.integers(2, 40),
       budget=st.sampled_from([40, 1 << 20]), seed=st.sampled_from([None, 3]))
def test_every_sample_comes_once_in_batches_of_a_good_size(sizes, size, budget, seed) -> None:
    total = sum(sizes)
    stream = list(torch.arange(total).split(sizes))
    found = batches(Source(stream, ONE, seed, budget=budget), size)
    assert sorted(torch.cat(found).tolist()) == list(range(total))
    if seed is None:
        assert torch.equal(torch.cat(found), torch.arange(total))
    counts = [len(b) for b in found]
    assert max(counts) <= size + (size == 2)
    assert min(counts) >= max(min(total, 2), min(total, size) // 2)


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 300), size=st.integers(2, 40), seed=st.integers(0, 9))
def test_a_data_set_an_array_and_its_batches_are_dealt_alike(total, size, seed) -> None:
    x = torch.arange(total)
    dataset = torch.utils.data.TensorDataset(x)
    found = [batches(Source(given, ONE, seed), size)
             for given in (x, [x], list(x.split(7)), dataset, x.numpy())]
    for other in found[1:]:
        assert [b.tolist() for b in other] == [b.tolist() for b in found[0]]
    counts = [len(b) for b in found[0]]
    assert max(counts) - min(counts) <= 1


def test_remainder_is_spread() -> None:
    assert [len(b) for b in batches(Source([np.zeros((32, 1))] * 63, ONE), 1000)] == [672] * 3
    assert [len(b) for b in batches(Source(np.zeros((2100, 1)), ONE), 1000)] == [700] * 3


def test_in_order_cuts_but_neither_joins_nor_shuffles() -> None:
    stream = [np.arange(4), np.arange(4, 14)]
    found = batches(Source(stream, ONE), 5, in_order=True)
    assert [b.tolist() for b in found] == [[0, 1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11, 12, 13]]


def test_samples_of_several_shapes_and_irregular_batches_never_mix() -> None:
    stream = [torch.zeros(6, 2, n) for n in (3, 5, 3, 5)]
    assert sorted(b.shape for b in batches(Source(stream, ONE), 100)) == [(12, 2, 3), (12, 2, 5)]
    takes = Takes((Slot("x"), Slot("length")))
    odd = [(torch.zeros(4, 3), torch.tensor(3.0))] * 3
    assert [len(b) for b in batches(Source(odd, takes), 100)] == [4, 4, 4]


def test_a_data_set_of_pairs_is_inputs_and_targets_also_for_two_inputs() -> None:
    class Data:
        def __len__(self):
            return 6

        def take(self, index):
            return (np.zeros((len(index), 2)), np.ones(len(index))), index

    call = next(Source(Data(), Takes((Slot("a"), Slot("b")))).batches(10))
    assert [x.shape for x in call.args] == [(6, 2), (6,)]


def test_what_holds_no_batches_is_refused() -> None:
    with pytest.raises(InputError, match="cannot take batches from int"):
        Source(3, ONE)
    assert Source([], ONE).empty
    assert not Source(iter([np.zeros(3)]), ONE).empty
