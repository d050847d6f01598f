"""When one formula's values are a multiple of another's."""

from __future__ import annotations

import numpy as np
import pytest

from bnpass.passes.sampling import factor_of

REFERENCE = np.array([1.0, -2.0, 3.0])


def test_a_multiple_is_found_within_its_tolerance() -> None:
    assert factor_of(-0.5 * REFERENCE, REFERENCE, 1e-6) == pytest.approx(-0.5)
    assert factor_of(REFERENCE + np.array([0, 0, 0.1]), REFERENCE, 1e-3) is None
    assert factor_of(0 * REFERENCE, REFERENCE, 1e-3) is None


@pytest.mark.parametrize("values", [[1.0, -2.0, np.inf], [np.nan, -2.0, 3.0], [1.0, -2.0], [1.0]])
def test_numbers_that_are_none_and_other_shapes_are_no_multiple(values: list[float]) -> None:
    assert factor_of(np.array(values), REFERENCE, 1e9) is None
