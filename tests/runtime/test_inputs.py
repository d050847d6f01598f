from __future__ import annotations

import numpy as np
import onnx
import pytest

from bnpass.errors import InputError
from bnpass.onnx_model.signature import inputs_of
from bnpass.runtime.inputs import (
    Draw,
    feeds_of,
    free_batch_of,
    free_sizes,
    random_inputs,
    split_batch,
)
from bnpass.runtime.session import run, session
from tests.runtime.conftest import text

IMAGE = " g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu(x) }"


def test_seeded_and_varied():
    model = text(IMAGE)
    a = random_inputs(model, Draw(batch=2, seed=1))["x"]
    assert a.shape == (2, 3, 16, 16)
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, random_inputs(model, Draw(batch=2, seed=1))["x"])
    assert not np.array_equal(a, random_inputs(model, Draw(batch=2, seed=2))["x"])


def test_sizes_of_symbols():
    model = text(IMAGE)
    draw = Draw(batch=4, size=32, dims=(("W", 20),))
    assert random_inputs(model, draw)["x"].shape == (4, 3, 32, 20)
    assert free_sizes(inputs_of(model)) == ["H", "W"]
    assert free_batch_of(inputs_of(model))


def test_fixed_dimensions_are_respected():
    model = text(" g (float[1, 3] x) => (float[1, 3] y) { y = Relu(x) }")
    assert random_inputs(model, Draw(batch=7))["x"].shape == (1, 3)
    assert not free_batch_of(inputs_of(model))


def test_batch_is_the_symbol_called_so():
    model = text(
        " g (float[T, batch, 3] x, float[batch, 2] z) => (float[T, batch, 3] y) { y = Relu(x) }"
    )
    feeds = random_inputs(model, Draw(batch=5, size=8))
    assert feeds["x"].shape == (8, 5, 3)
    assert feeds["z"].shape == (5, 2)


def test_styles():
    model = text(" g (float[N, 1000] x) => (float[N, 1000] y) { y = Relu(x) }")
    uniform = random_inputs(model, Draw(style="uniform"))["x"]
    assert uniform.min() >= 0 and uniform.max() < 1
    extreme = random_inputs(model, Draw(style="extreme"))["x"]
    assert np.isfinite(extreme).all() and np.abs(extreme).max() > 40 and (extreme == 0).any()


@pytest.mark.parametrize("route", ["i", "c", "u"])
def test_indices_stay_inside_the_table(route):
    """Directly, behind a Cast, behind a Cast and an Unsqueeze."""
    model = text(
        f""" g (int32[N, 5] i) => (float[a, b, c, d] y) {{
            c = Cast<to=7>(i)
            axes = Constant<value = int64[1] {{1}}>()
            u = Unsqueeze(c, axes)
            y = Gather({
            route.replace("i", "table, i").replace("c", "table, c").replace("u", "table, u")
            if len(route) == 1
            else ""
        })
        }}""",
        table=np.ones((3, 2), np.float32),
    )
    drawn = [random_inputs(model, Draw(batch=9, seed=s))["i"] for s in range(3)]
    assert {int(v) for d in drawn for v in d.ravel()} == {0, 1, 2}
    model.graph.output[0].type.tensor_type.ClearField("shape")
    run(session(model), None, {"i": drawn[0]})


def test_float_input_that_becomes_an_index():
    model = text(
        " g (float[N] x) => (float[N, 2] y) { i = Cast<to=7>(x) y = Gather(table, i) }",
        table=np.ones((3, 2), np.float32),
    )
    assert set(random_inputs(model, Draw(batch=50))["x"]) == {0.0, 1.0, 2.0}


def test_narrowest_of_two_tables():
    model = text(
        """ g (int64[N] i) => (float[N, 2] y) {
            a = Gather(big, i)
            b = Gather(small, i)
            y = Add(a, b)
        }""",
        big=np.ones((100, 2), np.float32),
        small=np.ones((4, 2), np.float32),
    )
    assert random_inputs(model, Draw(batch=200))["i"].max() == 3


def test_bool_bytes_and_half_types():
    model = text(
        """ g (bool[N, 99] a, uint8[N, 99] b, float16[N] c, bfloat16[N] d) => (bool[N, 99] y)
        { y = Not(a) }"""
    )
    feeds = random_inputs(model)
    assert feeds["a"].dtype == bool and 0 < feeds["a"].mean() < 1
    assert feeds["b"].dtype == np.uint8 and feeds["b"].max() > 200
    assert feeds["c"].dtype == np.float16
    assert feeds["d"].dtype.name == "bfloat16"


def test_a_shape_cannot_be_drawn():
    model = text(" g (float[N] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }")
    with pytest.raises(InputError, match="'s' is a shape"):
        random_inputs(model)


def test_feeds_of_arrays_tuples_and_mappings():
    ports = inputs_of(text(" g (float[N, 2] x, int64[N] i) => (float[N, 2] y) { y = Relu(x) }"))
    x, i = np.ones((3, 2)), np.zeros(3, np.int32)
    for batch in ((x, i), [x, i, "label"], {"x": x, "i": i}):
        feeds = feeds_of(batch, ports)
        assert feeds["x"].dtype == np.float32 and feeds["i"].dtype == np.int64
    with pytest.raises(InputError, match="no array for input 'i'"):
        feeds_of(x, ports)
    assert list(feeds_of({"x": x, "i": i, "label": x}, ports)) == ["x", "i"]
    with pytest.raises(InputError, match="wants shape"):
        feeds_of((np.ones((3, 4)), i), ports)
    with pytest.raises(InputError, match="wants int64"):
        feeds_of((x, x[:, 0]), ports)


def test_split_batch_to_a_fixed_size():
    ports = inputs_of(text(" g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }"))
    parts = split_batch((np.arange(18.0).reshape(6, 3), np.zeros(6)), ports)
    assert [feeds_of(p, ports)["x"][0, 0] for p in parts] == [0, 6, 12]
    assert len(split_batch(np.ones((2, 3)), ports)) == 1


def test_initializer_listed_as_input_is_no_input():
    model = text(" g (float[N, 2] x, float[2] w) => (float[N, 2] y) { y = Add(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    assert list(random_inputs(model)) == ["x"]
