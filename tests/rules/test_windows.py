"""Pools, reductions, resizing and padding."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import Norm, assert_folds, assert_stays, build, fold, positive

W = {"w": (4, 3, 3, 3), "b": (4,)}


def behind(op, norm=None, opset=21, x="float[N,3,8,8]", **weights):
    """Conv to 4 channels, the operator, BN."""
    text = f"""({x} x) => (float[] y) {{
      c = Conv(x, w, b)
      s = {op}
      y = BN(s, n)
    }}"""
    ir = 10 if opset > 15 else 7
    return build(text, {**W, "n": norm or Norm(4), **weights}, opset=opset, ir=ir)


def ahead(op, norm=None, kernel=(5, 4, 1, 1), last="Conv(s, w)", opset=21, **weights):
    """Tanh, BN, the operator, a layer."""
    text = f"""(float[N,4,8,8] x) => (float[] y) {{
      r = Tanh(x)
      a = BN(r, n)
      s = {op}
      y = {last}
    }}"""
    ir = 10 if opset > 15 else 7
    return build(text, {"w": kernel, "n": norm or Norm(4), **weights}, opset=opset, ir=ir)


# --- averages


@pytest.mark.parametrize(
    "op",
    ["AveragePool <kernel_shape = [2,2]>", "AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]>",
     'AveragePool <kernel_shape = [2,2], auto_pad = "SAME_UPPER", strides = [2,2]>',
     "AveragePool <kernel_shape = [3,3], count_include_pad = 1>",
     "AveragePool <kernel_shape = [3,3], ceil_mode = 1, strides = [2,2]>", "GlobalAveragePool",
     "ReduceMean"],
)  # fmt: skip
def test_averages_pass_every_map(op):
    extra = {"axes": [2, -1]} if op == "ReduceMean" else {}
    arguments = "{}, axes" if extra else "{}"
    assert_folds(behind(f"{op}({arguments.format('c')})", **extra))
    assert_folds(ahead(f"{op}({arguments.format('a')})", **extra))


COUNTED = "AveragePool <kernel_shape = [3,3], pads = [1,0,0,0], count_include_pad = 1>"


def test_an_average_that_counts_its_padding_passes_a_scale_alone():
    for op in (COUNTED, COUNTED.replace("pads = [1,0,0,0]", 'auto_pad = "SAME_UPPER"')):
        assert_folds(behind(f"{op}(c)", Norm(4, shift=False)))
        assert_stays(behind(f"{op}(c)"), "'s'", "count the zero padding")
        assert_folds(ahead(f"{op}(a)", Norm(4, shift=False)))
        assert_stays(ahead(f"{op}(a)"), "'s'", "count the zero padding")


def test_batch_norm_behind_pooling_and_flattening():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      g = GlobalAveragePool(c)
      f = Flatten(g)
      y = BN(f, n)
    }"""
    assert_folds(build(text, {**W, "n": Norm(4)}))
    model = ahead(
        "ReduceMean <keepdims = 0> (a, axes)", kernel=(4, 5), last="Gemm(s, w)", axes=[2, 3]
    )
    assert_folds(model)


# --- maxima


MAXIMA = ["MaxPool <kernel_shape = [2,2]>", "GlobalMaxPool", "ReduceMax",
          "MaxPool <kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]>"]  # fmt: skip


@pytest.mark.parametrize("op", [*MAXIMA, "ReduceMin"])
def test_maxima_pass_maps_without_negative_scales(op):
    extra = {"axes": [2, 3]} if op.startswith("Reduce") else {}
    more = ", axes" if extra else ""
    assert_folds(behind(f"{op}(c{more})", Norm(4, "nonnegative"), **extra))
    assert_stays(behind(f"{op}(c{more})", **extra), "'s'", "negative scale")
    assert_folds(ahead(f"{op}(a{more})", Norm(4, "nonnegative"), **extra))
    assert_stays(ahead(f"{op}(a{more})", **extra), "'s'", "negative scale")


def test_indices_that_are_read_stop_a_map():
    text = """(float[N,3,8,8] x) => (float[] y, int64[] i) {
      c = Conv(x, w, b)
      s, i = MaxPool <kernel_shape = [2,2]> (c)
      y = BN(s, n)
    }"""
    model = build(text, {**W, "n": Norm(4, "nonnegative")})
    assert_stays(model, "'s'")
    text = """(float[N,4,8,8] x) => (float[] y, int64[] i) {
      r = Tanh(x)
      a = BN(r, n)
      s, i = MaxPool <kernel_shape = [2,2]> (a)
      y = Conv(s, w)
    }"""
    model = build(text, {"w": (5, 4, 1, 1), "n": Norm(4, "nonnegative")})
    assert_stays(model, "'s'", "indices are read")


def test_indices_that_nobody_reads_do_not_matter():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s, i = MaxPool <kernel_shape = [2,2]> (c)
      y = BN(s, n)
    }"""
    assert_folds(build(text, {**W, "n": positive(4)}))


# --- reductions


@pytest.mark.parametrize("keep", [0, 1])
def test_a_sum_counts_a_shift(keep):
    ops = f"ReduceSum <keepdims = {keep}> (%s, axes)"
    assert_folds(behind(ops % "c", axes=[2, 3] if keep else [3]))
    last, kernel = ("Conv(s, w)", (5, 4, 1, 1)) if keep else ("Gemm(s, w)", (4, 5))
    assert_folds(ahead(ops % "a", kernel=kernel, last=last, axes=[2, 3]))


def test_a_sum_over_an_unknown_count_passes_a_scale_alone():
    shape = "float[N,3,H,W]"
    model = behind("ReduceSum(c, axes)", x=shape, axes=[2, 3])
    assert_stays(model, "'s'", "not known")
    assert_folds(behind("ReduceSum(c, axes)", Norm(4, shift=False), x=shape, axes=[2, 3]))


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum"])
def test_no_axes_mean_all_axes(op):
    text = f"""(float[N,4,8,8] x) => (float[] y) {{
      r = Tanh(x)
      a = BN(r, n)
      s = {op}(a)
      y = Sigmoid(s)
    }}"""
    assert_stays(build(text, {"n": Norm(4)}), "'s'", "reduces the channel axis")


def test_no_axes_may_mean_none():
    assert_folds(ahead("ReduceMean <noop_with_empty_axes = 1> (a)"))
    assert_folds(behind("ReduceSum <noop_with_empty_axes = 1> (c)"))


def test_reducing_the_channels_stops_a_map():
    text = """(float[N,4,8,8] x) => (float[] y) {
      r = Tanh(x)
      a = BN(r, n)
      s = ReduceMean(a, axes)
      y = Conv(s, w)
    }"""
    model = build(text, {"w": (5, 1, 3, 3), "axes": [1], "n": Norm(4)})
    assert_stays(model, "'s'", "reduces the channel axis")


def test_a_map_on_another_axis_than_the_reduced_one():
    """Backward the reduced channels would all get one map, which is along another axis."""
    text = """(float[N,3,4,7] x) => (float[] y) {
      c = MatMul(x, w)
      s = ReduceMean <keepdims = 0> (c, axes)
      t = Transpose <perm = [0,2,1]> (s)
      y = BN(t, n)
    }"""
    assert_folds(build(text, {"w": (7, 5), "axes": [1], "n": Norm(5)}))


# --- Resize, Upsample


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transform", ["half_pixel", "align_corners", "asymmetric"])
def test_resize_passes_every_map(mode, transform):
    scales = np.float32([1, 1, 2, 1.5])
    op = f'Resize <mode = "{mode}", coordinate_transformation_mode = "{transform}"> (%s, , scales)'
    text = op.replace(", , ", ', "", ')
    for make, value in ((behind, "c"), (ahead, "a")):
        model = _without_roi(make, text % value, scales)
        assert_folds(model)


def _without_roi(make, op, scales, **weights):
    """The text has no way to leave an input in the middle out."""
    model = make(
        op.replace('""', "nothing"), scales=scales, nothing=np.zeros(0, np.float32), **weights
    )
    for node in model.graph.node:
        if node.op_type == "Resize":
            node.input[1] = ""
    kept = [t for t in model.graph.initializer if t.name != "nothing"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def test_crop_and_resize_writes_values_of_its_own():
    op = ('Resize <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", '
          "extrapolation_value = 3.0> (%s, roi, scales)")  # fmt: skip
    roi, scales = np.float32([0, 0, 0, 0, 1, 1, 1.5, 1.5]), np.float32([1, 1, 2, 2])
    assert_stays(behind(op % "c", roi=roi, scales=scales), "'s'", "tf_crop_and_resize")
    assert_stays(ahead(op % "a", roi=roi, scales=scales), "'s'", "tf_crop_and_resize")


def test_resizing_the_channels_stops_a_map():
    scales = np.float32([1, 2, 1, 1])
    model = _without_roi(behind, 'Resize(c, "", scales)', scales, norm=Norm(8))
    assert_stays(model, "'s'", "resizes the channel axis")


def test_upsample_of_opset_9():
    scales = np.float32([1, 1, 2, 2])
    assert_folds(behind('Upsample <mode = "nearest"> (c, scales)', opset=9, scales=scales))


def test_upsample_of_opset_7():
    assert_folds(behind('Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (c)', opset=7))


def test_channels_that_a_resize_resamples_stop_a_map_though_their_number_stays():
    scales = np.float32([1, 1.2, 2, 2])  # 4 channels stay 4, one of them is read twice
    op = 'Resize <mode = "nearest"> (%s, "", scales)'
    for make, value in ((behind, "c"), (ahead, "a")):
        model = _without_roi(make, op % value, scales)
        assert_stays(model, "'s'", "resizes the channel axis")
    model = behind('Resize <mode = "nearest"> (c, scales)', opset=10, scales=scales)
    assert_stays(model, "resizes the channel axis")
    model = behind('Upsample <mode = "nearest"> (c, scales)', opset=9, scales=scales)
    assert_stays(model, "resizes the channel axis")
    model = behind('Upsample <mode = "nearest", scales = [1.0, 1.2, 2.0, 2.0]> (c)', opset=7)
    assert_stays(model, "resizes the channel axis")


def test_resize_to_sizes_passes_beside_the_channels():
    none = np.zeros(0, np.float32)
    sizes = {"sizes": [2, 4, 9, 11], "none": none}  # old exporters: no scales, as an empty tensor
    assert_folds(behind('Resize <mode = "linear"> (c, none, none, sizes)', opset=11, **sizes))
    sizes = {"sizes": [9, 11], "none": none}
    op = 'Resize <mode = "nearest", axes = [2, 3], keep_aspect_ratio_policy = "{}"> '
    for policy in ("stretch", "not_larger"):
        text = op.format(policy) + "(c, none, none, sizes)"
        assert_folds(behind(text, **sizes))


def test_one_ratio_for_all_axes_may_resample_the_channels():
    op = """Resize <mode = "nearest", axes = [1, 2, 3], keep_aspect_ratio_policy = "not_larger">
            (c, none, none, sizes)"""
    model = behind(op, none=np.zeros(0, np.float32), sizes=[4, 9, 11])
    assert_stays(model, "resizes the channel axis")

# --- Pad

PADS = {"pads": [0, 0, 1, 2, 0, 0, 0, 1]}


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_padding_with_copies_passes_every_map(mode):
    assert_folds(behind(f'Pad <mode = "{mode}"> (c, pads)', **PADS))
    assert_folds(ahead(f'Pad <mode = "{mode}"> (a, pads)', **PADS))


def test_padding_with_zeros_passes_scales():
    assert_folds(behind("Pad(c, pads)", Norm(4, shift=False), **PADS))
    assert_folds(ahead("Pad(a, pads)", Norm(4, shift=False), **PADS))


def test_a_shift_that_differs_from_channel_to_channel_stays():
    assert_stays(behind("Pad(c, pads)", **PADS), "'s'", "differ from channel to channel")
    assert_stays(
        ahead("Pad(a, pads)", positive(4), **PADS), "'s'", "differ from channel to channel"
    )


@pytest.mark.parametrize("value", [None, 0.0, 1.5])
def test_a_uniform_map_becomes_the_new_fill_value(value):
    more = "" if value is None else ", fill"
    extra = {} if value is None else {"fill": value}
    norm = {k: np.full(4, a[0]) for k, a in Norm(4).arrays("n", np.random.default_rng(0)).items()}
    for make, source in ((behind, "c"), (ahead, "a")):
        model = make(f"Pad({source}, pads{more})", **PADS, **extra)
        for tensor in model.graph.initializer:
            if tensor.name in norm:
                tensor.raw_data = norm[tensor.name].tobytes()
        assert_folds(model)


def test_a_fill_value_that_others_read_is_left_to_them():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      s = Pad(c, pads, fill)
      y = Add(s, one)
      z = Pad(x, pads, fill)
    }"""
    model = build(text, {**W, **PADS, "fill": 2.0, "one": 0.5})
    assert_folds(model)


def test_a_fill_value_that_a_map_has_made_is_seen_by_the_next():
    """The Add turns the fill into 0.5; then the Mul in front sends its scale past the Pad."""
    text = """(float[N,4,8,8] x) => (float[] y) {
      r = Tanh(x)
      m = Mul(r, k)
      q = Sigmoid(m)
      e = Add(q, one)
      s = Pad(e, pads)
      t = Add(s, half)
      u = Relu(t)
      y = Conv(u, w)
    }"""
    weights = {"w": (5, 4, 1, 1), "k": (4, 1, 1), "one": 1.0, "half": 0.5, **PADS}
    result = fold(build(text, weights))
    assert result.count("Add") == 1
    text = text.replace("q = Sigmoid(m)", "q = Neg(m)").replace("Relu(t)", "Identity(t)")
    assert_folds(build(text, {**weights, "k": 0.7}))


def test_padding_of_opset_10_holds_its_fill_value_in_an_attribute():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s = Pad <pads = [0,0,1,1,0,0,1,1], value = 2.0> (c)
      y = Add(s, one)
    }"""
    assert_folds(build(text, {**W, "one": 0.5}, opset=10, ir=5))
    text = text.replace(", value = 2.0", "")
    assert_folds(build(text, {**W, "one": 0.5}, opset=10, ir=5))


def test_padded_channels():
    pads = {"pads": [0, 1, 0, 0, 0, 1, 0, 0]}
    model = ahead("Pad(a, pads)", kernel=(5, 6, 3, 3), **pads)
    assert_folds(model)
    norm = Norm(6).arrays("n", np.random.default_rng(0))
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s = Pad(c, pads)
      y = BN(s, n)
    }"""
    assert_stays(build(text, {**W, **norm, **pads}), "'s'", "fill value")
    for part in ("b", "m"):
        norm[f"n_{part}"][[0, -1]] = 0
    assert_folds(build(text, {**W, **norm, **pads}))


def test_padding_of_channels_and_pixels_at_once():
    pads = {"pads": [0, 1, 1, 1, 0, 0, 0, 0]}
    assert_stays(ahead("Pad(a, pads)", kernel=(5, 5, 3, 3), **pads), "'s'")


def test_padding_that_crops():
    pads = {"pads": [0, 0, -1, 0, 0, 0, 0, -2]}
    assert_folds(behind("Pad(c, pads)", Norm(4, shift=False), **pads))
    assert_folds(behind("Pad(c, pads)", **pads))
    assert_folds(behind('Pad <mode = "reflect"> (c, pads)', **pads))
    mixed = {"pads": [0, 0, -1, 1, 0, 0, 0, 0]}  # what is put in is seen, whatever is cut off
    assert_stays(behind("Pad(c, pads)", **mixed))


def test_padding_that_crops_channels():
    """Entries that are cut off ask for nothing; in front of the layer the map is cut."""
    pads = {"pads": [0, -1, 0, 0, 0, -1, 0, -1]}
    assert_folds(behind("Pad(c, pads)", Norm(2), **pads))
    assert_folds(ahead("Pad(a, pads)", kernel=(5, 2, 3, 3), **pads))


def test_a_dynamic_fill_value_stays():
    text = """(float[N,3,8,8] x, float v) => (float[] y) {
      c = Conv(x, w, b)
      s = Pad(c, pads, v)
      y = BN(s, n)
    }"""
    assert_stays(build(text, {**W, **PADS, "n": Norm(4)}), "'s'", "computed at run time")


def test_padding_of_listed_axes():
    assert_folds(behind("Pad(c, pads, , axes)".replace(", ,", ", zero,"), Norm(4, shift=False),
                        pads=[1, 2, 0, 1], zero=0.0, axes=[-1, 2]))  # fmt: skip
