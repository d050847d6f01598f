"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from bnpass.report.words import many


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [(1, "BatchNorm", "1 BatchNorm"), (1234, "BatchNorm", "1,234 BatchNorms"),
     (0, "bias", "0 biases"), (2, "nonlinearity", "2 nonlinearities"), (2, "day", "2 days")],
)  # fmt: skip
def test_numbers_with_nouns(count: int, noun: str, said: str) -> None:
    assert many(count, noun) == said
