"""Branches beside convolutions: linear, with BatchNorms of their own, and gone after the fold."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import bnpass
from bnpass.errors import UnsupportedError, UsageError
from tests.helpers import assert_same, build, nodes

ROOT = "float[N,4,9,8]"


def net(attributes="pads = [1,1,1,1]", weight=(4, 4, 3, 3), root=ROOT):
    return build(f"({root} x) => (float[] y) {{ c = Conv <{attributes}> (x, w, b) y = Relu(c) }}",
                 {"w": weight, "b": weight[:1]})  # fmt: skip


def branched(model, branches, **options):
    return bnpass.insert(model, branches=branches, last=True, **options)


def convolutions(model):
    """Kernel sizes of the convolutions, and how many BatchNorms there are."""
    weights = {t.name: tuple(t.dims[2:]) for t in model.graph.initializer}
    found = [weights[n.input[1]] for n in nodes(model.graph) if n.op_type == "Conv"]
    return found, sum(n.op_type == "BatchNormalization" for n in model.graph.node)


def trained(model, seed=3):
    """The same with other statistics and parameters in every BatchNorm."""
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = {n: i for node in copy.graph.node if node.op_type == "BatchNormalization"
             for i, n in enumerate(node.input) if i}  # fmt: skip
    for tensor in copy.graph.initializer:
        if tensor.name in names:
            low = 0.3 if names[tensor.name] == 4 else -1.5
            array = rng.uniform(low, 1.5, tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


def assert_collapses(model, branches):
    """Any numbers in the branches' BatchNorms: one convolution again, with the same outputs."""
    inserted = trained(branched(model, branches))
    folded = bnpass.fold(inserted)
    assert_same(inserted, folded)
    alone = bnpass.fold(trained(bnpass.insert(model, last=True)))
    assert [n.op_type for n in folded.graph.node] == [n.op_type for n in alone.graph.node]
    assert convolutions(folded) == convolutions(alone)


CASES = {
    "same size": ("pads = [1,1,1,1]", (4, 4, 3, 3), [(3, 3), (1, 1)], 3, [(3, 3), (1, 3), (3, 1)]),
    "other channels": ("pads = [1,1,1,1]", (6, 4, 3, 3), [(3, 3), (1, 1)], 2,
                       [(3, 3), (1, 3), (3, 1)]),
    "stride": ("pads = [1,1,1,1], strides = [2,2]", (4, 4, 3, 3), [(3, 3), (1, 1)], 2,
               [(3, 3), (1, 3), (3, 1)]),
    "dilation": ("pads = [2,2,2,2], dilations = [2,2]", (4, 4, 3, 3), [(3, 3), (1, 1)], 3,
                 [(3, 3), (1, 3), (3, 1)]),
    "groups": ("pads = [1,1,1,1], group = 4", (4, 1, 3, 3), [(3, 3), (1, 1)], 3,
               [(3, 3), (1, 3), (3, 1)]),
    "more padding": ("pads = [2,3,2,1]", (4, 4, 3, 3), [(3, 3), (1, 1)], 2,
                     [(3, 3), (1, 3), (3, 1)]),
    "a row": ("pads = [0,1,0,1]", (4, 4, 1, 3), [(1, 3), (1, 1)], 3, [(1, 3)]),
    "unpadded": ("pads = [0,0,0,0]", (4, 4, 3, 3), [(3, 3)], 1, [(3, 3)]),
    "even": ("pads = [1,1,0,0]", (4, 4, 2, 2), [(2, 2)], 1, [(2, 2)]),
    "pointwise": ("pads = [0,0,0,0]", (4, 4, 1, 1), [(1, 1)], 1, [(1, 1)]),
    "padded in part": ("pads = [1,0,1,0]", (4, 4, 3, 3), [(3, 3)], 1, [(3, 3), (3, 1)][:1]),
    "automatic padding, lower": ('auto_pad = "SAME_LOWER"', (4, 4, 2, 3), [(2, 3)], 1,
                                 [(2, 3), (2, 1)]),
    "automatic padding": ('auto_pad = "SAME_UPPER"', (4, 4, 3, 3), [(3, 3), (1, 1)], 3,
                          [(3, 3), (1, 3), (3, 1)]),
}


@pytest.mark.parametrize("name", CASES)
def test_repvgg(name):
    attributes, weight, kernels, norms, _ = CASES[name]
    model = net(attributes, weight)
    assert convolutions(branched(model, "repvgg")) == (kernels, norms)
    assert_collapses(model, "repvgg")


@pytest.mark.parametrize("name", CASES)
def test_acnet(name):
    attributes, weight, _, _, kernels = CASES[name]
    model = net(attributes, weight)
    found, norms = convolutions(branched(model, "acnet"))
    assert found[0] == kernels[0]
    assert set(found) <= set(kernels) | {(1, 3), (3, 1)}
    assert norms == len(found)
    assert_collapses(model, "acnet")


@pytest.mark.parametrize("root", ["float[N,4,9]", "float[N,4,5,6,7]"])
def test_other_dimensions(root):
    axes = root.count(",") - 1
    model = net(f"pads = {[1] * 2 * axes}", (4, 4, *[3] * axes), root)
    assert convolutions(branched(model, "repvgg")) == ([(3,) * axes, (1,) * axes], 3)
    for branches in ("repvgg", "acnet"):
        assert_collapses(model, branches)


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    pads=st.tuples(*[st.integers(0, 4)] * 4),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    group=st.sampled_from([1, 2, 4]),
    branches=st.sampled_from(["repvgg", "acnet"]),
)
def test_any_window(kernel, pads, strides, dilations, group, branches):
    attributes = (f"pads = {list(pads)}, strides = {list(strides)}, "
                  f"dilations = {list(dilations)}, group = {group}")  # fmt: skip
    assert_collapses(net(attributes, (4, 4 // group, *kernel), "float[N,4,11,12]"), branches)


@pytest.mark.parametrize("branches", ["repvgg", "acnet"])
def test_the_function_is_preserved(branches):
    model = net()
    assert_same(model, branched(model, branches, init="preserve"))
    x = np.random.default_rng(0).standard_normal((64, 4, 9, 8)).astype(np.float32)
    assert_same(model, branched(model, branches, init="calibrated", data=[x]))


def test_a_residual_sum_is_normalised_per_branch():
    model = build(
        f"""({ROOT} x) => (float[] y) {{ a = Conv <pads = [1,1,1,1]> (x, w)
        c = Conv <pads = [1,1,1,1]> (x, v) s = Add(a, c) y = Relu(s) }}""",
        {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)},
    )
    assert convolutions(branched(model, "repvgg"))[1] == 6
    inserted = trained(branched(model, "repvgg"))
    assert_same(inserted, bnpass.fold(inserted))


def test_a_shared_weight_gets_none():
    model = build(
        f"""({ROOT} x) => (float[] y) {{ a = Conv <pads = [1,1,1,1]> (x, w) r = Relu(a)
        c = Conv <pads = [1,1,1,1]> (r, w) y = Relu(c) }}""", {"w": (4, 4, 3, 3)},
    )  # fmt: skip
    assert convolutions(branched(model, "repvgg")) == ([(3, 3), (3, 3)], 2)


def test_the_weights_follow_the_seed():
    model = net()
    one, same, other = (branched(model, "acnet", seed=s) for s in (1, 1, 2))
    assert one == same
    assert one != other


def test_the_plan_names_them():
    plan = branched(net(), "repvgg", plan_only=True)
    assert plan.to_dict()["sites"][0]["branches"] == ["c_bn_1x1", "c_bn_identity"]


def test_refusals():
    import torch

    with pytest.raises(UsageError, match="repvgg"):
        branched(net(), "repvg")
    with pytest.raises(UnsupportedError, match="branches"):
        bnpass.insert(torch.nn.Linear(2, 2), torch.zeros(3, 2), branches="repvgg")


@pytest.mark.parametrize(("ir", "opset"), [(3, 7), (3, 9), (8, 13)])
@pytest.mark.parametrize("branches", ["repvgg", "acnet"])
def test_files_whose_weights_are_inputs_too(ir, opset, branches):
    model = build(
        f"({ROOT} x) => (float[] y) {{ c = Conv <pads = [1,1,1,1]> (x, w, b) y = Relu(c) }}",
        {"w": (4, 4, 3, 3), "b": (4,)}, ir=ir, opset=opset,
    )  # fmt: skip
    assert_same(model, branched(model, branches, init="preserve"))
    assert_collapses(model, branches)
