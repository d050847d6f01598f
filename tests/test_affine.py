"""The algebra of per-channel maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnpass.ir.affine import Map

NUMBERS = st.integers(-8, 8).map(lambda n: n / 4)  # exact in binary: equality means equality


@st.composite
def maps(draw, shape=(2, 3, 1)):
    """Maps whose two arrays vary along some of a value's axes."""

    def array():
        dims = [n if draw(st.booleans()) else 1 for n in shape]
        return np.array(draw(st.lists(NUMBERS, min_size=6, max_size=6)))[: np.prod(dims)].reshape(
            dims
        )

    return Map(array(), array())


X = np.arange(6.0).reshape(2, 3, 1)


def apply(m, x):
    return m.scale * x + m.shift


@given(maps(), maps())
def test_a_composition_does_one_after_the_other(outer, inner):
    np.testing.assert_array_equal(apply(outer.after(inner), X), apply(outer, apply(inner, X)))


@given(maps(), maps(), maps())
def test_composition_is_associative_and_has_an_identity(a, b, c):
    left, right = a.after(b).after(c), a.after(b.after(c))
    np.testing.assert_array_equal(apply(left, X), apply(right, X))
    assert a.after(Map.identity(3)).equals(a) and Map.identity(3).after(a).equals(a)


@given(maps())
def test_a_map_is_its_scale_and_then_its_shift(m):
    assert m.shift_only().after(m.scale_only()).equals(m)
    assert m.scale_only().has_scale == m.has_scale and not m.scale_only().has_shift
    assert m.shift_only().has_shift == m.has_shift and not m.shift_only().has_scale


@given(maps())
def test_a_compact_map_is_the_same_map(m):
    small = m.compact()
    assert small.equals(m)
    assert all(n <= k for n, k in zip(small.shape, m.shape, strict=True))
    assert small.is_identity == m.is_identity == bool((apply(m, X) == X).all() and m.equals(
        Map.identity(3)))  # fmt: skip


@given(maps())
def test_a_full_map_is_the_same_map(m):
    full = m.full((0, 1), (2, 3, 1))
    assert full.equals(m) and full.scale.shape == full.shift.shape == (2, 3, 1)


def test_along_one_axis():
    m = Map.along(1, 3, np.array([1.0, -2.0, 0.0]), np.array([0.5, 0.0, 1.0]))
    assert m.rank == 3 and m.shape == (1, 3, 1) and m.axes == (1,)
    assert m.has_scale and m.has_shift and not m.is_identity and not m.is_monotone
    scale, shift = m.vectors(1, 3)
    np.testing.assert_array_equal(scale, [1, -2, 0])
    np.testing.assert_array_equal(shift, [0.5, 0, 1])
    assert m.vectors(0, 2) is None


def test_a_uniform_map_is_one_along_every_axis():
    m = Map(np.full((1, 1), 2.0), np.zeros((1, 1)))
    assert m.axes == ()
    for axis, size in ((0, 4), (1, 7)):
        scale, shift = m.vectors(axis, size)
        assert scale.shape == shift.shape == (size,) and (scale == 2).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_only_finite_maps_are_finite(bad):
    assert not Map(np.array([1.0, bad]), np.zeros(1)).is_finite
    assert not Map(np.ones(1), np.array([bad, 0.0])).is_finite
    assert Map(np.ones(1), np.zeros(1)).is_finite


def test_maps_of_other_ranks_are_never_equal():
    assert not Map.identity(2).equals(Map.identity(3))


def test_moving_both_arrays():
    m = Map.along(1, 3, np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    moved = m.each(lambda a: a.transpose(0, 2, 1))
    assert moved.axes == (2,)
    np.testing.assert_array_equal(moved.vectors(2, 2)[1], [3, 4])
