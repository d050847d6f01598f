from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bnpass.data import from_arrays
from bnpass.training import TrainConfig
from bnpass.training.feed import Feed, augment

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=4)


def numbers(count: int = 10):
    return from_arrays(np.arange(count, dtype=np.float32)[:, None], np.arange(count))


def test_a_pass_takes_each_sample_at_most_once_and_the_next_is_another_order() -> None:
    feed = Feed(numbers(), CONFIG, CPU)
    steps = [feed.take(step)[0][1].tolist() for step in range(4)]
    assert feed.per_epoch == 2
    assert len({*steps[0], *steps[1]}) == 8
    assert steps[:2] != steps[2:]


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    whole = [x for _, ((x, _),) in Feed(numbers(), CONFIG, CPU).steps(0, 6)]
    late = [x for _, ((x, _),) in Feed(numbers(), CONFIG, CPU).steps(3, 6)]
    streamed = [x for _, ((x, _),) in Feed(numbers(), CONFIG, CPU, limit=0).steps(0, 6)]
    for step in range(3):
        assert torch.equal(whole[step + 3], late[step])
    for a, b in zip(whole, streamed, strict=True):
        assert torch.equal(a, b)


def test_micro_batches_are_the_batch_in_parts() -> None:
    whole = Feed(numbers(), CONFIG, CPU).take(1)[0][1]
    parts = [y for _, y in Feed(numbers(), replace(CONFIG, accumulate=2), CPU).take(1)]
    assert [len(p) for p in parts] == [2, 2]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("flip", [False, True])
def test_shifted_images_are_windows_of_the_padded_image(flip: bool) -> None:
    x = torch.arange(1.0, 1 + 50 * 2 * 4 * 5).reshape(50, 2, 4, 5)
    out = augment(x, np.random.default_rng(0), crop=1, flip=flip)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    seen = set()
    for image, source, whole in zip(out, x, padded, strict=True):
        found = [
            (i, j, mirrored)
            for i in range(3) for j in range(3) for mirrored in (False, True)
            if torch.equal(image, _window(source, whole, i, j, mirrored))
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len({(i, j) for i, j, _ in seen}) == 9
    assert {mirrored for *_, mirrored in seen} == ({False, True} if flip else {False})


def _window(source: torch.Tensor, whole: torch.Tensor, i: int, j: int,
            mirrored: bool) -> torch.Tensor:
    if mirrored:
        whole = torch.nn.functional.pad(source.flip(-1), (1, 1, 1, 1))
    return whole[:, i : i + 4, j : j + 5]


def test_flat_samples_are_not_augmented() -> None:
    x = torch.rand(3, 7)
    assert augment(x, np.random.default_rng(0), crop=2, flip=True) is x
