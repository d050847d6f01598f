"""Operators that move entries: the channel axis is followed through every one of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import Norm, assert_folds, assert_stays, build, positive

W = {"w": (4, 3, 3, 3), "b": (4,)}


def behind(ops, channels=4, norm=None, x="float[N,3,8,8]", **weights):
    """Conv to 4 channels (c), operators that make s, then BN of s."""
    text = f"""({x} x) => (float[] y) {{
      c = Conv(x, w, b)
      {ops}
      y = BN(s, n)
    }}"""
    return build(text, {**W, "n": norm or Norm(channels), **weights})


def ahead(ops, x="float[N,4,8,8]", kernel=(5, 4, 3, 3), norm=None, last="Conv(s, w)", **weights):
    """Tanh, BN (a), operators that make s, then a layer."""
    text = f"""({x} x) => (float[] y) {{
      r = Tanh(x)
      a = BN(r, n)
      {ops}
      y = {last}
    }}"""
    return build(text, {"w": kernel, "n": norm or Norm(4), **weights})


# --- Transpose


@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (3, 1, 0, 2), (1, 0, 2, 3), (0, 1, 2, 3)])
def test_transpose_moves_the_channel_axis(perm):
    back = [int(i) for i in np.argsort(perm)]
    ops = f"""t = Transpose <perm = {list(perm)}> (c)
      s = Transpose <perm = {back}> (t)"""
    assert_folds(behind(ops))


def test_batch_norm_on_rows_of_a_transposed_matmul_stays():
    """onnxruntime's own fusion is wrong by 1.2 here: channels are rows of x, not columns of w."""
    text = """(float[8,8] x) => (float[] y) {
      h = MatMul(x, w)
      t = Transpose(h)
      y = BN(t, n)
    }"""
    assert_stays(build(text, {"w": (8, 8), "n": Norm(8)}), "'h'", "rows of its other operand")


def test_batch_norm_on_columns_that_a_transpose_brings_to_the_front_folds():
    text = """(float[N,T,7] x) => (float[] y) {
      h = MatMul(x, w)
      t = Transpose <perm = [1,2,0]> (h)
      y = BN(t, n)
    }"""
    assert_folds(build(text, {"w": (7, 4), "n": Norm(4)}))


def test_forward_channels_last_arithmetic():
    text = """(float[N,4,8,8] x) => (float[] y) {
      r = Tanh(x)
      t = Transpose <perm = [0,2,3,1]> (r)
      m = Mul(t, k)
      a = Add(m, d)
      s = Transpose <perm = [0,3,1,2]> (a)
      y = Conv(s, w)
    }"""
    result = assert_folds(build(text, {"w": (5, 4, 3, 3), "k": (4,), "d": (4,)}))
    assert result.count("Mul", "Add") == 0


def test_forward_transpose_to_another_axis_than_the_contracted_one_stays():
    model = ahead("s = Transpose <perm = [0,2,3,1]> (a)", last="MatMul(s, w)", kernel=(4, 5))
    assert_folds(model)
    other = ahead("s = Transpose <perm = [0,3,1,2]> (a)", last="MatMul(s, w)", kernel=(8, 5))
    assert_stays(other, "'y'", "a shift cannot pass along the rows")


# --- Reshape, Flatten, Squeeze, Unsqueeze


def test_batch_norm_on_another_axis_of_a_reshaped_matmul_stays():
    """onnxruntime's own fusion is wrong by 2.6 here: every channel holds 8 columns' parts."""
    text = """(float[4,4] x) => (float[] y) {
      h = MatMul(x, w)
      t = Reshape(h, shape)
      y = BN(t, n)
    }"""
    model = build(text, {"w": (4, 8), "shape": [2, 8, 2], "n": Norm(8)})
    assert_stays(model)


def test_matmul_whose_columns_split_into_channels_and_pixels():
    """A GAN's first layer: every channel's map repeats over its 2 x 3 columns."""
    text = """(float[N,7] x) => (float[] y) {
      h = Gemm(x, w, c)
      t = Reshape(h, shape)
      y = BN(t, n)
    }"""
    weights = {"w": (7, 24), "c": (24,), "shape": [-1, 4, 2, 3], "n": Norm(4)}
    assert_folds(build(text, weights))


def test_columns_that_split_the_other_way_round():
    text = """(float[N,7] x) => (float[] y) {
      h = Gemm(x, w, c)
      t = Reshape(h, shape)
      p = Transpose <perm = [0,3,1,2]> (t)
      y = BN(p, n)
    }"""
    weights = {"w": (7, 24), "c": (24,), "shape": [-1, 2, 3, 4], "n": Norm(4)}
    assert_folds(build(text, weights))


@pytest.mark.parametrize("shape", [[0, 2, 2, 6, 6], [0, 2, 2, -1], [0, 4, 36], [0, 4, -1]])
def test_channels_split_and_pixels_merge(shape):
    ops = "t = Reshape(c, shape)\n      s = Reshape(t, back)"
    assert_folds(behind(ops, shape=shape, back=[0, 4, 6, 6]))


def test_groups_of_channels_share_one_entry():
    model = behind("s = Reshape(c, shape)", channels=2, shape=[0, 2, -1])
    assert_folds(model)


def test_a_reshape_that_merges_channels_with_pixels_needs_one_map():
    model = behind("s = Reshape(c, shape)", channels=144, shape=[0, -1])
    assert_stays(model, "'c'")
    norm = Norm(4).arrays("n", np.random.default_rng(0))
    flat = {k: np.repeat(a, 36) for k, a in norm.items()}
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s = Reshape(c, shape)
      y = BN(s, n)
    }"""
    assert_folds(build(text, {**W, **flat, "shape": [0, -1]}))


@pytest.mark.parametrize("op", ["Flatten(a)", "Flatten <axis = 1> (a)", "Reshape(a, shape)"])
def test_forward_flatten_into_gemm(op):
    weights = {"shape": [0, -1]} if "shape" in op else {}
    model = ahead(f"s = {op}", last="Gemm(s, w)", kernel=(256, 5), **weights)
    result = assert_folds(model)
    assert result.weights()["w"].shape == (256, 5)


def test_flatten_that_merges_the_batch_with_the_channels_stays():
    model = ahead("s = Flatten <axis = 2> (a)", last="Gemm(s, w)", kernel=(64, 5))
    assert_stays(model, "'s'", "sizes that are not known")
    fixed = ahead(
        "s = Flatten <axis = 2> (a)", last="Gemm(s, w)", kernel=(64, 5), x="float[2,4,8,8]"
    )
    assert_stays(fixed, "'y'")


def test_an_unknown_size_beside_the_channels_does_not_matter():
    ops = "s = Reshape(c, shape)"
    model = behind(ops, x="float[N,3,H,W]", shape=[0, 4, -1])
    assert_folds(model)


def test_an_unknown_size_that_mixes_with_the_channels_stays():
    text = """(float[N,3,H,W] x) => (float[] y) {
      r = Tanh(x)
      a = BN(r, n)
      s = Reshape(a, shape)
      t = Reshape(s, back)
      y = Gemm(t, w)
    }"""
    weights = {"shape": [0, -1], "back": [-1, 5], "w": (5, 4), "n": Norm(3)}
    assert_stays(build(text, weights), "'s'", "sizes that are not known")


def test_a_reshape_to_a_computed_shape():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      sh = Shape(x)
      i = Gather(sh, zero)
      l = Concat <axis = 0> (i, rest)
      t = Reshape(c, l)
      y = BN(t, n)
    }"""
    weights = {**W, "zero": [0], "rest": [4, 36], "n": Norm(4)}
    assert_folds(build(text, weights))


@pytest.mark.parametrize(
    "ops",
    ["u = Unsqueeze(c, two)\n      s = Squeeze(u, two)",
     "u = Unsqueeze(c, ends)\n      s = Squeeze(u, ends)",
     "s = Unsqueeze(c, four)"],
)  # fmt: skip
def test_squeeze_and_unsqueeze_move_the_axis(ops):
    weights = {"two": [2], "ends": [0, -1], "four": [4]}
    assert_folds(behind(ops, **{k: v for k, v in weights.items() if f"{k})" in ops}))


def test_unsqueeze_in_front_of_the_channels_stays_another_axis():
    model = behind("s = Unsqueeze(c, zero)", channels=2, norm=Norm(2), zero=[0], x="float[2,3,8,8]")
    assert_stays(model, "'c'")


def test_forward_squeeze_into_gemm():
    ops = "g = GlobalAveragePool(a)\n      s = Squeeze(g, ends)"
    assert_folds(ahead(ops, last="Gemm(s, w)", kernel=(4, 5), ends=[2, 3]))


# --- DepthToSpace, SpaceToDepth


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_spreads_a_map(mode):
    text = f"""(float[N,3,8,8] x) => (float[] y) {{
      c = Conv(x, w, b)
      s = DepthToSpace <blocksize = 2, mode = "{mode}"> (c)
      y = BN(s, n)
    }}"""
    assert_folds(build(text, {"w": (12, 3, 3, 3), "b": (12,), "n": Norm(3)}))


def test_space_to_depth_needs_equal_channels():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s = SpaceToDepth <blocksize = 2> (c)
      y = BN(s, n)
    }"""
    weights = {"w": (3, 3, 3, 3), "b": (3,)}
    assert_stays(build(text, {**weights, "n": Norm(12)}), "'s'", "need different maps")
    tiled = {k: np.tile(a, 4) for k, a in Norm(3).arrays("n", np.random.default_rng(0)).items()}
    assert_folds(build(text, {**weights, **tiled}))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_forward_depth_to_space_needs_equal_channels(mode):
    def model(norm):
        text = f"""(float[N,12,4,4] x) => (float[] y) {{
          r = Tanh(x)
          a = BN(r, n)
          s = DepthToSpace <blocksize = 2, mode = "{mode}"> (a)
          y = Conv(s, w)
        }}"""
        return build(text, {"w": (5, 3, 3, 3), **norm})

    arrays = Norm(3).arrays("n", np.random.default_rng(0))
    spread = np.repeat if mode == "CRD" else np.tile
    assert_folds(model({k: spread(a, 4) for k, a in arrays.items()}))
    other = np.tile if mode == "CRD" else np.repeat
    wrong = model({k: other(a, 4) for k, a in arrays.items()})
    assert_stays(wrong, "'s'", "need different maps")


def test_forward_space_to_depth_spreads_a_map():
    assert_folds(ahead("s = SpaceToDepth <blocksize = 2> (a)", kernel=(5, 16, 1, 1)))


# --- Expand, Tile


def test_expand_passes_beside_the_channels():
    ops = "g = GlobalAveragePool(c)\n      s = Expand(g, shape)"
    assert_folds(behind(ops, shape=[1, 4, 3, 3]))
    ops = "g = GlobalAveragePool(a)\n      s = Expand(g, shape)"
    assert_folds(ahead(ops, shape=[1, 4, 3, 3]))
    ops += "\n      t = Transpose <perm = [0,1,3,4,2]> (s)"
    model = ahead(ops, shape=[2, 1, 4, 3, 3], last="MatMul(t, w)", kernel=(4, 5))
    assert_folds(model)


def test_expand_of_the_channels_needs_one_map():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s = Expand(c, shape)
      y = BN(s, n)
    }"""
    weights = {"w": (1, 3, 3, 3), "b": (1,), "shape": [1, 4, 1, 1]}
    assert_stays(build(text, {**weights, "n": Norm(4)}), "'s'", "copies of one entry")
    same = {k: np.full(4, a[0]) for k, a in Norm(4).arrays("n", np.random.default_rng(0)).items()}
    assert_folds(build(text, {**weights, **same}))


def test_tile_passes_beside_the_channels():
    assert_folds(behind("s = Tile(c, r)", r=[1, 1, 2, 1]))
    assert_folds(ahead("s = Tile(a, t)", t=[2, 1, 1, 3]))


def test_tile_of_the_channels_needs_one_map():
    model = behind("s = Tile(c, r)", channels=8, r=[1, 2, 1, 1])
    assert_stays(model, "'s'", "copies of one entry")
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      s = Tile(c, r)
      y = BN(s, n)
    }"""
    tiled = {k: np.tile(a, 2) for k, a in Norm(4).arrays("n", np.random.default_rng(0)).items()}
    assert_folds(build(text, {**W, **tiled, "r": [1, 2, 1, 1]}))


def test_forward_tile_repeats_the_map():
    assert_folds(ahead("s = Tile(a, t)", t=[1, 3, 1, 1], kernel=(5, 12, 3, 3)))


# --- Concat


def test_concat_on_the_channels_gives_every_operand_its_slice():
    ops = "d = Conv(x, v)\n      e = Conv(x, u)\n      s = Concat <axis = -3> (c, d, e)"
    assert_folds(behind(ops, channels=7, v=(2, 3, 3, 3), u=(1, 3, 3, 3)))


def test_concat_with_an_operand_that_is_no_layer_stays():
    model = behind("p = Tanh(c)\n      s = Concat <axis = 1> (c, p)", channels=8)
    assert_stays(model, "'p'")


def test_concat_with_an_operand_whose_slice_is_the_identity():
    text = """(float[N,3,8,8] x, float[N,4,6,6] z) => (float[] y) {
      c = Conv(x, w, b)
      p = Tanh(z)
      s = Concat <axis = 1> (c, p)
      y = Mul(s, k)
    }"""
    scale = np.float32([2, -3, 0, 1, 1, 1, 1, 1]).reshape(8, 1, 1)
    assert_folds(build(text, {**W, "k": scale}))


def test_concat_on_another_axis_gives_all_the_same():
    ops = "d = Conv(x, v)\n      s = Concat <axis = 2> (c, d)"
    assert_folds(behind(ops, v=(4, 3, 3, 3)))


def test_concat_on_another_axis_of_a_value_with_itself():
    assert_folds(behind("s = Concat <axis = 3> (c, c)"))


def test_forward_concat_extends_the_map_with_the_identity():
    ops = "q = Sigmoid(x)\n      s = Concat <axis = 1> (q, a)"
    assert_folds(ahead(ops, kernel=(5, 8, 3, 3)))


def test_forward_concat_on_another_axis_needs_the_same_on_all():
    ops = "q = Sigmoid(x)\n      s = Concat <axis = 2> (q, a)"
    assert_stays(ahead(ops), "'s'", "not all of its operands carry the same map")
    assert_folds(ahead("q = Identity(a)\n      s = Concat <axis = 2> (q, a)"))


def test_dense_block_of_pre_activations():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, v)
      r = Relu(c)
      a = BN(r, n)
      d = Conv(a, w)
      e = Conv(a, w)
      s = Concat <axis = 1> (d, e)
      z = BN(s, p)
      y = Relu(z)
    }"""
    weights = {"v": (4, 3, 3, 3), "w": (5, 4, 3, 3), "n": Norm(4), "p": Norm(10)}
    assert_folds(build(text, weights))


# --- Split, Slice, Gather


def test_split_where_every_output_has_a_batch_norm():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      p, q = Split <axis = 1> (c, sizes)
      y = BN(p, n)
      z = BN(q, m)
    }"""
    weights = {**W, "sizes": [1, 3], "n": Norm(1), "m": Norm(3)}
    assert_folds(build(text, weights))


@pytest.mark.parametrize("sizes", [[2, 3], [3, 2]])
def test_parts_of_different_sizes_change_places(sizes):
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w)
      p, q = Split <axis = 1> (c, sizes)
      s = Concat <axis = 1> (q, p)
      y = BN(s, n)
    }"""
    assert_folds(build(text, {"w": (5, 3, 3, 3), "sizes": sizes, "n": Norm(5)}))
    text = """(float[N,5,8,8] x) => (float[] y) {
      t = Tanh(x)
      z = BN(t, n)
      p, q = Split <axis = 1> (z, sizes)
      s = Concat <axis = 1> (q, p)
      y = Conv(s, w)
    }"""
    assert_folds(build(text, {"w": (4, 5, 3, 3), "sizes": sizes, "n": Norm(5)}))


@pytest.mark.parametrize("sizes", [[2, 3], [3, 2]])
def test_parts_of_different_sizes_with_a_batch_norm_each(sizes):
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w)
      p, q = Split <axis = 1> (c, sizes)
      y = BN(p, n)
      z = BN(q, m)
    }"""
    one, other = sizes
    assert_folds(build(text, {"w": (5, 3, 3, 3), "sizes": sizes, "n": Norm(one), "m": Norm(other)}))
    text = """(float[N,5,8,8] x) => (float[] y) {
      t = Tanh(x)
      p, q = Split <axis = 1> (t, sizes)
      a = BN(p, n)
      e = BN(q, m)
      s = Concat <axis = 1> (a, e)
      y = Conv(s, w)
    }"""
    assert_folds(build(text, {"w": (4, 5, 3, 3), "sizes": sizes, "n": Norm(one), "m": Norm(other)}))

def test_split_siblings_without_a_map_keep_what_they_have():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z, float[] u) {
      c = Conv(x, w, b)
      p, q, r = Split <axis = 1> (c, sizes)
      y = BN(p, n)
      z = Tanh(q)
      u = Identity(r)
    }"""
    assert_folds(build(text, {**W, "sizes": [2, 1, 1], "n": Norm(2)}))


@pytest.mark.parametrize("opset", [12, 18])
def test_split_into_equal_parts(opset):
    attribute = ", num_outputs = 2" if opset == 18 else ""
    text = f"""(float[N,3,8,8] x) => (float[] y, float[] z) {{
      c = Conv(x, w, b)
      p, q = Split <axis = 1{attribute}> (c)
      y = BN(p, n)
      z = Tanh(q)
    }}"""
    assert_folds(build(text, {**W, "n": Norm(2)}, opset=opset, ir=7))


def test_split_on_another_axis_needs_all_siblings_to_agree():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      p, q = Split <axis = 2> (c, sizes)
      y = BN(p, n)
      z = BN(q, n)
    }"""
    weights = {**W, "sizes": [2, 4], "n": Norm(4)}
    stays = build(text.replace("z = BN(q, n)", "z = Tanh(q)"), weights)
    assert_stays(stays, "'p'")


def test_forward_split_gives_every_output_its_slice():
    text = """(float[N,4,8,8] x) => (float[] y, float[] z) {
      r = Tanh(x)
      a = BN(r, n)
      p, q = Split <axis = 1> (a, sizes)
      y = Conv(p, w)
      z = Conv(q, v)
    }"""
    weights = {"w": (5, 1, 3, 3), "v": (2, 3, 3, 3), "sizes": [1, 3], "n": Norm(4)}
    assert_folds(build(text, weights))
    text = text.replace("z = Conv(q, v)", "z = Sigmoid(q)")
    del weights["v"]
    assert_stays(build(text, weights), "'z'")


SLICE = {"starts": [1], "ends": [3], "axes": [1]}


def test_slice_of_the_channels():
    model = behind("s = Slice(c, starts, ends, axes)", channels=2, **SLICE)
    assert_folds(model)


@pytest.mark.parametrize(
    ("starts", "ends", "steps", "channels"),
    [(-3, -1, 1, 2), (3, 0, -1, 3), (-1, -(2**63), -1, 4), (0, 2**63 - 1, 2, 2), (3, -9, -2, 2),
     (1, 100, 2, 2)],
)  # fmt: skip
def test_slices_with_negative_indices_and_steps(starts, ends, steps, channels):
    model = behind("s = Slice(c, starts, ends, axes, steps)", channels=channels,
                   starts=[starts], ends=[ends], axes=[-3], steps=[steps])  # fmt: skip
    assert_folds(model)
    kernel = (5, channels, 3, 3)
    model = ahead("s = Slice(a, starts, ends, axes, steps)", kernel=kernel,
                  starts=[starts], ends=[ends], axes=[-3], steps=[steps])  # fmt: skip
    assert_folds(model)


def test_slices_that_overlap_must_agree():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      p = Slice(c, s0, e0, axes)
      q = Slice(c, s1, e1, axes)
      y = BN(p, n)
      z = BN(q, m)
    }"""
    weights = {**W, "axes": [1], "s0": [0], "e0": [2], "s1": [1], "e1": [4]}
    model = build(text, {**weights, "n": Norm(2), "m": Norm(3)})
    assert_stays(model, "'c'")


def test_slices_side_by_side_fold_one_by_one():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      p = Slice(c, s0, e0, axes)
      q = Slice(c, s1, e1, axes)
      y = BN(p, n)
      z = BN(q, m)
    }"""
    weights = {**W, "axes": [1], "s0": [0], "e0": [2], "s1": [2], "e1": [4]}
    assert_folds(build(text, {**weights, "n": Norm(2), "m": Norm(2)}))


def test_slice_on_another_axis_passes():
    model = behind("s = Slice(c, starts, ends, axes)", starts=[1, 2], ends=[4, 5], axes=[2, 3])
    assert_folds(model)
    model = ahead("s = Slice(a, starts, ends, axes)", starts=[1, 2], ends=[4, 7], axes=[2, 3])
    assert_folds(model)


def test_slice_on_another_axis_beside_another_reader_stays():
    text = """(float[N,3,8,8] x) => (float[] y, float[] z) {
      c = Conv(x, w, b)
      p = Slice(c, s0, e0, axes)
      q = Slice(c, s1, e1, axes)
      y = BN(p, n)
      z = Tanh(q)
    }"""
    weights = {**W, "axes": [2], "s0": [0], "e0": [2], "s1": [2], "e1": [4], "n": Norm(4)}
    assert_stays(build(text, weights), "'c'")


def test_slice_with_computed_ends_stays():
    text = """(float[N,3,8,8] x, int64[1] e) => (float[N,k,6,6] y) {
      c = Conv(x, w, b)
      s = Slice(c, starts, e, axes)
      t = Relu(s)
      y = Mul(t, k)
    }"""
    model = build(text, {**W, "starts": [0], "axes": [1], "k": 2.0})
    assert_stays(model)


@pytest.mark.parametrize(
    ("index", "channels"), [([2, 0, 3], 3), ([-1, 1], 2), ([3], 1), ([0, -4, 2], 3)]
)
def test_gather_of_channels(index, channels):
    model = behind("s = Gather <axis = 1> (c, i)", channels=channels, i=index)
    if len({v % 4 for v in index}) == channels:
        assert_folds(model)
    else:
        assert_stays(model, "'s'", "read twice")
    kernel = (5, channels, 3, 3)
    assert_folds(ahead("s = Gather <axis = -3> (a, i)", kernel=kernel, i=index))


def test_gather_of_one_channel_drops_the_axis():
    index = np.array(2, np.int64)
    ops = "g = Gather <axis = 1> (a, i)\n      s = Unsqueeze(g, one)"
    assert_folds(ahead(ops, kernel=(5, 1, 3, 3), i=index, one=[1]))
    ops = "g = Gather <axis = 1> (c, i)\n      s = Unsqueeze(g, one)"
    assert_folds(behind(ops, channels=1, i=index, one=[1]))


def test_gather_on_another_axis_passes():
    assert_folds(behind("s = Gather <axis = 2> (c, i)", i=[3, 0]))
    assert_folds(behind("s = Gather <axis = 2> (c, i)", i=[3, 3]))
    assert_folds(ahead("s = Gather <axis = 3> (a, i)", i=[5, 0, 2, 5]))


def test_gather_with_computed_indices_stays():
    text = """(float[N,3,8,8] x, int64[2] i) => (float[] y) {
      c = Conv(x, w, b)
      s = Gather <axis = 1> (c, i)
      y = BN(s, n)
    }"""
    assert_stays(build(text, {**W, "n": Norm(2)}), "'s'", "computed at run time")


def test_channel_shuffle():
    ops = """q = Reshape(c, apart)
      t = Transpose <perm = [0,2,1,3,4]> (q)
      s = Reshape(t, together)"""
    assert_folds(behind(ops, apart=[0, 2, 2, 6, 6], together=[0, 4, 6, 6]))
    assert_folds(ahead(ops.replace("(c,", "(a,"), apart=[0, 2, 2, 8, 8], together=[0, 4, 8, 8]))


def test_heads_of_attention():
    text = """(float[N,T,8] x) => (float[] y) {
      h = MatMul(x, w)
      a = Add(h, b)
      r = Reshape(a, shape)
      t = Transpose <perm = [0,2,1,3]> (r)
      y = BN(t, n)
    }"""
    model = build(text, {"w": (8, 12), "b": (12,), "shape": [0, 0, 3, 4], "n": Norm(3)})
    result = assert_folds(model)
    assert result.count("Add") == 1


def test_structure_of_some_depth():
    text = """(float[N,3,8,8] x) => (float[] y) {
      c = Conv(x, w, b)
      d = Conv(x, v)
      s = Concat <axis = 1> (c, d)
      p = MaxPool <kernel_shape = [2,2]> (s)
      q = Identity(p)
      u = Flatten(q)
      g = Reshape(u, shape)
      y = BN(g, n)
    }"""
    weights = {**W, "v": (4, 3, 3, 3), "shape": [0, 8, 5, 5], "n": positive(8)}
    assert_folds(build(text, weights))
