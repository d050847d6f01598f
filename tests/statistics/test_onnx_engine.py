from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnpass.errors import InputError, UnsupportedError, UsageError
from bnpass.runtime.session import run, session
from bnpass.statistics.onnx_engine import batch_moments, calibrate_onnx
from bnpass.statistics.source import Source
from tests import processes
from tests.runtime.conftest import array, text


@pytest.fixture
def images(rng):
    return rng.normal(0.3, 2, size=(300, 3, 8, 8)).astype(np.float32)


def value(model, name, feeds):
    """Compute one intermediate value of a model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return run(session(copy, optimize=False), [name], feeds)[0].astype(np.float64)


def moments(x):
    return x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))


def test_first_bn_is_exact_at_any_batching(convnet, images):
    want = moments(value(convnet, "c1", {"x": images}))
    for size, cut in ((1000, 300), (70, 64), (7, 300)):
        batches = [images[i : i + cut] for i in range(0, 300, cut)]
        found = calibrate_onnx(convnet, batches, batch_size=size)
        np.testing.assert_allclose(array(found, "m1"), want[0], rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(array(found, "v1"), want[1], rtol=2e-6)


def test_second_bn_sees_batch_normalised_values(convnet, images):
    """One batch of everything: bn2's statistics are those behind the calibrated bn1."""
    found = calibrate_onnx(convnet, [images])
    want = moments(value(found, "c2", {"x": images}))
    np.testing.assert_allclose(array(found, "m2"), want[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(array(found, "v2"), want[1], rtol=1e-4)


def test_pooled_over_several_batches_is_near_exact(convnet, images):
    exact = calibrate_onnx(convnet, [images])
    found = calibrate_onnx(convnet, [images], batch_size=100)
    np.testing.assert_allclose(array(found, "v2"), array(exact, "v2"), rtol=2e-2)


def test_calibrated_network_normalises(convnet, images):
    found = calibrate_onnx(convnet, [images])
    out = value(found, "n1", {"x": images})
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), array(found, "t1"), atol=1e-4)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), array(found, "s1"), rtol=1e-3)


def test_only_the_statistics_change(convnet, images):
    before = convnet.SerializeToString()
    found = calibrate_onnx(convnet, [(images, np.zeros(300))])
    assert convnet.SerializeToString() == before
    changed = {
        a.name
        for a, b in zip(convnet.graph.initializer, found.graph.initializer, strict=True)
        if a != b
    }
    assert changed == {"m1", "v1", "m2", "v2"}
    assert [n.SerializeToString() for n in found.graph.node] == [
        n.SerializeToString() for n in convnet.graph.node
    ]


def test_seed_and_repeatability(convnet, images):
    a, b = (calibrate_onnx(convnet, [images], batch_size=50, seed=3) for _ in range(2))
    assert a.SerializeToString() == b.SerializeToString()
    c = calibrate_onnx(convnet, [images], batch_size=50, seed=4)
    assert not np.array_equal(array(a, "v2"), array(c, "v2"))


def test_class_sorted_data_is_shuffled(convnet, rng):
    """Batches of one brightness each would lose the variance between them in bn2."""
    images = rng.normal(size=(400, 3, 8, 8)) + np.repeat([-4, 4], 200)[:, None, None, None]
    images = images.astype(np.float32)
    exact = calibrate_onnx(convnet, [images])
    found = calibrate_onnx(convnet, [images[:200], images[200:]], batch_size=200)
    np.testing.assert_allclose(array(found, "v2"), array(exact, "v2"), rtol=0.1)


def test_paper_method(convnet, images):
    """Algorithm 2, step 10: Var[x] = m / (m - 1) * E_B[var_B]."""
    found = calibrate_onnx(convnet, [images], method="paper", batch_size=60)
    assert len(images) % 60 == 0
    order = np.random.default_rng(0).permutation(300)
    c1 = value(convnet, "c1", {"x": images})[order].reshape(5, 60, 4, 8, 8)
    m = 60 * 64
    want = c1.var(axis=(1, 3, 4)).mean(axis=0) * m / (m - 1)
    np.testing.assert_allclose(array(found, "v1"), want, rtol=2e-6)


def test_ema_method_starts_from_the_stored_statistics(convnet, images):
    found = calibrate_onnx(convnet, [images], method="ema", batch_size=300)
    c1 = value(convnet, "c1", {"x": images})
    m = 300 * 64
    var = 0.9 * array(convnet, "v1") + 0.1 * c1.var(axis=(0, 2, 3)) * m / (m - 1)
    np.testing.assert_allclose(array(found, "v1"), var, rtol=1e-5)


def test_frozen_and_only(convnet, images):
    found = calibrate_onnx(convnet, [images], frozen=["bn1"])
    assert np.array_equal(array(found, "m1"), array(convnet, "m1"))
    want = moments(value(convnet, "c2", {"x": images}))
    np.testing.assert_allclose(array(found, "v2"), want[1], rtol=1e-5)
    same = calibrate_onnx(convnet, [images], only=["*2"])
    assert same.SerializeToString() == found.SerializeToString()
    with pytest.raises(UsageError, match="'bm1'") as caught:
        calibrate_onnx(convnet, [images], frozen=["bm1"])
    assert "bn1" in caught.value.hint


def test_shared_statistics_get_their_own(rng):
    model = text(
        """ g (float[N, 3] x) => (float[N, 3] y) {
            [a] h = BatchNormalization(x, s, t, m, v)
            k = Mul(h, h)
            [b] y = BatchNormalization(k, s, t, m, v)
        }""",
        s=np.ones(3, np.float32),
        t=np.zeros(3, np.float32),
        m=np.zeros(3, np.float32),
        v=np.ones(3, np.float32),
    )
    x = rng.normal(3, 5, size=(500, 3)).astype(np.float32)
    found = calibrate_onnx(model, [x])
    onnx.checker.check_model(found, full_check=True)
    np.testing.assert_allclose(
        array(found, found.graph.node[0].input[3]), x.mean(axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(array(found, found.graph.node[2].input[3]), np.ones(3), rtol=1e-4)


def test_statistics_in_constant_nodes(rng):
    model = text(
        """ g (float[N, 2] x) => (float[N, 2] y) {
            m = Constant<value = float[2] {0, 0}>()
            v = Constant<value = float[2] {1, 1}>()
            y = BatchNormalization(x, s, t, m, v)
        }""",
        s=np.ones(2, np.float32),
        t=np.zeros(2, np.float32),
    )
    x = rng.normal(3, 5, size=(500, 2)).astype(np.float32)
    found = calibrate_onnx(model, [x])
    tensor = found.graph.node[1].attribute[0].t
    np.testing.assert_allclose(numpy_helper.to_array(tensor), x.var(axis=0), rtol=1e-5)


def test_mean_and_variance_of_one_initializer(rng):
    """The same tensor as mean and variance of one BN: two new ones."""
    model = text(
        " g (float[N, 2] x) => (float[N, 2] y) { [n] y = BatchNormalization(x, s, t, o, o) }",
        s=np.ones(2, np.float32),
        t=np.zeros(2, np.float32),
        o=np.ones(2, np.float32),
    )
    x = rng.normal(3, 5, size=(500, 2)).astype(np.float32)
    found = calibrate_onnx(model, [x])
    mean, var = (array(found, name) for name in found.graph.node[0].input[3:])
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(var, x.var(axis=0), rtol=1e-5)


@pytest.mark.parametrize("opset", [9, 13, 15, 18, 21])
def test_every_opset(opset, rng):
    model = text(
        """ g (float[N, 2, L] x) => (float[N, 2, L] y) {
            h = Relu(x)
            y = BatchNormalization(h, s, t, m, v)
        }""",
        s=np.ones(2, np.float32),
        t=np.zeros(2, np.float32),
        m=np.zeros(2, np.float32),
        v=np.ones(2, np.float32),
    )
    model.opset_import[0].version = opset
    x = rng.normal(size=(60, 2, 9)).astype(np.float32)
    found = calibrate_onnx(model, [x[:30, :, :5], x[30:]])
    pixels = np.concatenate(
        [x[:30, :, :5].swapaxes(0, 1).reshape(2, -1), x[30:].swapaxes(0, 1).reshape(2, -1)], axis=1
    )
    np.testing.assert_allclose(array(found, "v"), np.maximum(pixels, 0).var(axis=1), rtol=1e-5)


def test_half_precision(rng):
    model = text(
        """ g (float16[N, 2] x) => (float16[N, 2] y) {
            h = BatchNormalization(x, s, t, m, v)
            y = Relu(h)
        }""",
        s=np.ones(2, np.float16),
        t=np.zeros(2, np.float16),
        m=np.zeros(2, np.float16),
        v=np.ones(2, np.float16),
    )
    x = rng.normal(3, 5, size=(500, 2)).astype(np.float16)
    found = calibrate_onnx(model, [x])
    want = x.astype(np.float64).var(axis=0)
    np.testing.assert_array_equal(array(found, "v"), want.astype(np.float16))
    with pytest.raises(InputError, match="not finite in float16"):
        calibrate_onnx(model, [x * np.float16(1000)])


def test_dropout_is_off(rng):
    model = text(
        """ g (float[N, 2] x) => (float[N, 2] y) {
            r = Constant<value = float {0.5}>()
            on = Constant<value = bool {1}>()
            d = Dropout(x, r, on)
            y = BatchNormalization(d, s, t, m, v)
        }""",
        s=np.ones(2, np.float32),
        t=np.zeros(2, np.float32),
        m=np.zeros(2, np.float32),
        v=np.ones(2, np.float32),
    )
    x = rng.normal(3, 5, size=(500, 2)).astype(np.float32)
    found = calibrate_onnx(model, [x])
    np.testing.assert_allclose(array(found, "v"), x.var(axis=0), rtol=1e-5)
    assert len(found.graph.node[2].input) == 3


def test_large_mean_does_not_cancel(rng):
    """|mean| / sigma = 1e4: E[x^2] - E[x]^2 in float32 would be all noise."""
    model = text(
        " g (float[N, 1, 50, 50] x) => (float[N, 1, 50, 50] y)"
        " { y = BatchNormalization(x, o, z, z, o) }",
        o=np.ones(1, np.float32),
        z=np.zeros(1, np.float32),
    )
    x = rng.normal(1e4, 1, size=(500, 1, 50, 50)).astype(np.float32)
    found = calibrate_onnx(model, [x], batch_size=130)
    mean, var = (array(found, name) for name in found.graph.node[0].input[3:])
    np.testing.assert_allclose(var, x.astype(np.float64).var(), rtol=1e-5)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(), rtol=1e-7)


def test_bad_data(convnet, images):
    with pytest.raises(InputError, match="no batch"):
        calibrate_onnx(convnet, [])
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="batch 0 of the data has NaN"):
        calibrate_onnx(convnet, [images])
    with pytest.raises(UsageError, match="unknown method") as caught:
        calibrate_onnx(convnet, [images], method="poled")
    assert "pooled" in caught.value.hint
    with pytest.raises(UsageError, match="batch_size"):
        calibrate_onnx(convnet, [images], batch_size=0)


def test_one_element_a_channel():
    model = text(
        " g (float[N, 1] x) => (float[N, 1] y) { y = BatchNormalization(x, o, o, o, o) }",
        o=np.ones(1, np.float32),
    )
    with pytest.raises(InputError, match="one element"):
        calibrate_onnx(model, [np.ones((1, 1), np.float32)])


@pytest.mark.parametrize("method", ["pooled", "ema"])
def test_statistics_computed_from_constants(rng, method):
    """As in files whose weights come from ConstantOfShape."""
    model = text(
        """ g (float[N, 2] x) => (float[N, 2] y) {
            shape = Constant<value = int64[1] {2}>()
            v = ConstantOfShape<value = float[1] {4}>(shape)
            m = Neg(v)
            [n] y = BatchNormalization(x, v, v, m, v)
        }"""
    )
    x = rng.normal(3, 5, size=(500, 2)).astype(np.float32)
    found = calibrate_onnx(model, [x], method=method)
    onnx.checker.check_model(found, full_check=True)
    mean, var = (array(found, name) for name in found.graph.node[3].input[3:])
    if method == "pooled":
        np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(var, x.var(axis=0), rtol=1e-5)
    else:
        np.testing.assert_allclose(mean, 0.9 * -4 + 0.1 * x.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(var, 3.6 + 0.1 * x.var(axis=0, ddof=1), rtol=1e-5)


def test_fed_statistics_and_old_versions(images, convnet):
    model = text(
        """ g (float[N, 1] x, float[1] w) => (float[N, 1] y) {
            m = Neg(w)
            y = BatchNormalization(x, o, o, m, o)
        }""",
        o=np.ones(1, np.float32),
    )
    batch = {"x": np.eye(4, 1, dtype=np.float32), "w": np.ones(1, np.float32)}
    with pytest.raises(InputError, match="fed or computed"):
        calibrate_onnx(model, [batch])
    convnet.opset_import[0].version = 6
    with pytest.raises(UnsupportedError, match="opset 6"):
        calibrate_onnx(convnet, [images])


def test_model_without_bn_is_unchanged(mlp):
    found = calibrate_onnx(mlp, [])
    assert found is not mlp and found.SerializeToString() == mlp.SerializeToString()


def test_fixed_batch_is_freed(convnet, images):
    pytest.importorskip("bnpass.frontends.onnx.free_batch")
    want = calibrate_onnx(convnet, [images])
    for io in (convnet.graph.input[0], convnet.graph.output[0]):
        io.type.tensor_type.shape.dim[0].dim_value = 1
    found = calibrate_onnx(convnet, [images])
    np.testing.assert_array_equal(array(found, "v2"), array(want, "v2"))
    assert found.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_batch_moments_of_the_original_network(convnet, images):
    found = batch_moments(
        convnet, [("c1", 1), ("n2", 1), ("y", -1), ("x", 3)], [images[:200], images[200:]]
    )
    for name in ("c1", "n2"):
        want = moments(value(convnet, name, {"x": images}))
        np.testing.assert_allclose(found[name][0], want[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[name][1], want[1], rtol=1e-5)
    y = value(convnet, "y", {"x": images})
    np.testing.assert_allclose(found["y"][1], y.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["x"][0], images.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    assert found["c1"][0].dtype == np.float64


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -4])
def test_batch_moments_of_any_axis(axis, rng):
    model = text(" g (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] y) { y = Neg(x) }")
    x = rng.normal(size=(6, 3, 4, 5)).astype(np.float32)
    mean, var = batch_moments(model, [("y", axis)], [x])["y"]
    others = tuple(i for i in range(4) if i != axis % 4)
    np.testing.assert_allclose(mean, -x.mean(axis=others), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(var, x.var(axis=others), rtol=1e-5)


def test_batch_moments_at_a_fixed_batch(rng):
    model = text(" g (float[1, 3] x) => (float[1, 3] y) { y = Neg(x) }")
    x = rng.normal(size=(40, 3)).astype(np.float32)
    mean, var = batch_moments(model, [("y", 1)], x)["y"]
    np.testing.assert_allclose(mean, -x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(var, x.var(axis=0), rtol=1e-5)


def test_batch_moments_of_unknown_values(mlp):
    with pytest.raises(InputError, match="no value 'hh'"):
        batch_moments(mlp, [("hh", 1)], [np.ones((2, 6), np.float32)])
    with pytest.raises(UsageError, match="twice"):
        batch_moments(mlp, [("h", 1), ("h", 0)], [np.ones((2, 6), np.float32)])


def test_no_torch_is_imported(tmp_path, convnet):
    path = tmp_path / "net.onnx"
    onnx.save(convnet, path)
    code = (
        "import sys, numpy as np; from bnpass.statistics.onnx_engine import *;"
        f"x = np.ones((9, 3, 8, 8), np.float32); calibrate_onnx({str(path)!r}, [x]);"
        f"batch_moments({str(path)!r}, [('c1', 1)], [x]);"
        "from bnpass.runtime.verify import verify;"
        f"assert verify({str(path)!r}, {str(path)!r}).passed;"
        "assert 'torch' not in sys.modules"
    )
    processes.run([sys.executable, "-c", code], check=True)


def test_one_mapping_or_array_is_one_batch(convnet, images):
    want = calibrate_onnx(convnet, [images]).SerializeToString()
    assert calibrate_onnx(convnet, images).SerializeToString() == want
    assert calibrate_onnx(convnet, {"x": images}).SerializeToString() == want


def test_data_set_with_batches(convnet, images):
    class Data:
        def batches(self, batch_size, *, shuffle, seed, drop_last):
            assert not drop_last
            yield from ((images[i : i + 100], None) for i in range(0, 300, 100))

    found = calibrate_onnx(convnet, Data())
    assert found.SerializeToString() == calibrate_onnx(convnet, [images]).SerializeToString()


def test_warnings(convnet, images, caplog, monkeypatch):
    """Sorted labels matter only where the data cannot be shuffled as a whole."""
    y = np.repeat(np.arange(3), 100)
    batches = [(images[i : i + 100], y[i : i + 100]) for i in range(0, 300, 100)]
    calibrate_onnx(convnet, batches)
    assert not caplog.records
    monkeypatch.setitem(Source.__init__.__kwdefaults__, "budget", 1000)
    calibrate_onnx(convnet, batches)
    assert "labels come sorted" in caplog.text
    caplog.clear()
    order = np.random.default_rng(0).permutation(300)
    calibrate_onnx(convnet, [(images[order], y[order])])
    assert not caplog.records


def test_poor_statistics_are_warned_about(caplog, rng):
    model = text(
        " g (float[N, 2] x) => (float[N, 2] y) { [n] y = BatchNormalization(x, o, o, o, o) }",
        o=np.ones(2, np.float32),
    )
    calibrate_onnx(model, [rng.normal(size=(30, 2)).astype(np.float32)])
    assert "n saw only 30 elements per channel" in caplog.text
    caplog.clear()
    calibrate_onnx(model, [rng.normal(size=(90, 2)).astype(np.float32)], method="ema")
    assert "moving average over 1 batches" in caplog.text
