"""A freed batch, node by node: a right one passes, a wrong one is caught with its node named."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest

import bnpass
from bnpass.errors import InputError
from bnpass.frontends.onnx import free_batch as frontend
from bnpass.frontends.onnx.free_batch import free_batch
from bnpass.onnx_model.model import OnnxModel
from bnpass.passes.free_batch.node import RULES, Batch, BatchNode, State
from bnpass.verdict.batches import prove_batch
from bnpass.verdict.findings import ProofReport
from bnpass.verdict.side import Side
from tests.runtime.conftest import text

RNG = np.random.default_rng(5)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def answer(old: onnx.ModelProto, new: onnx.ModelProto, size: int, **values: Batch) -> ProofReport:
    """The proof of a result with these claims; inputs carry the batch on axis 0."""
    claims = {i.name: Batch(0) for i in old.graph.input} | values
    one, other = (Side(OnnxModel(m), m.graph, (), None) for m in (old, new))
    return prove_batch(one, other, claims, size)


RESHAPED = """ g (float[{n}, 3, 4] x) => (float[{n}, 12] y)
    <int64[2] shape = {{{first}, {second}}}> {{
    r = Relu(x)
    y = Reshape(r, shape) }}"""


def reshaped(n: object, first: int, second: int) -> onnx.ModelProto:
    return text(RESHAPED.format(n=n, first=first, second=second))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_right_reshape_passes(size: int) -> None:
    old, new = reshaped(size, size, 12), reshaped("N", -1, 12)
    found = answer(old, new, size, r=Batch(0), y=Batch(0))
    assert found.passed
    assert found.proven == 1  # a Relu needs no proof
    assert not found.open


@pytest.mark.parametrize(("size", "first", "second"), [(1, 1, -1), (2, 2, -1), (2, -1, 24)])
def test_a_reshape_that_is_right_at_the_old_size_alone(size: int, first: int, second: int) -> None:
    """The old constant left as it is, or samples laid side by side."""
    old = reshaped(size, size, 12)
    new = reshaped("N", first, second)
    found = answer(old, new, size, r=Batch(0), y=Batch(0))
    assert [(p.node, p.value) for p in found.failures] == [("y", "y")] * len(found.failures)
    assert not found.passed


def test_a_reshape_that_mixes_batch_and_channels() -> None:
    """Shapes fit at every size, and it is not even an edit: the rows are others."""
    mixed = """ g (float[{n}, 3, 4] x) => (float[{n}, 12] y)
        <int64[2] shape = {{-1, 12}}> {{
        t = Transpose<perm = [1, 0, 2]>(x)
        y = Reshape(t, shape) }}"""
    old, new = text(mixed.format(n=2)), text(mixed.format(n="N"))
    found = answer(old, new, 2, t=Batch(1), y=Batch(0))
    assert [p.node for p in found.failures] == ["y"]


TOKEN = """ g (float[{n}, 4, 6] x) => (float[{n}, 5, 6] y) {{
    a = MatMul(x, W)
    {tile}
    y = Concat<axis = 1>({token}, a) }}"""


@pytest.mark.parametrize("repeats", ["{1, 1, 1}", "{2, 1, 1}"])
def test_a_tile_that_was_left_at_one_size(repeats: str) -> None:
    weights = {"W": floats(6, 6), "token": floats(1, 1, 6)}
    old = text(TOKEN.format(n=1, tile="", token="token"), **weights)
    tile = f"times = Constant<value = int64[3] {repeats}>()  t = Tile(token, times)"
    new = text(TOKEN.format(n="N", tile=tile, token="t"), **weights)
    found = answer(old, new, 1, a=Batch(0), y=Batch(0))
    assert [p.node for p in found.failures] == ["y"]


def test_an_operator_over_the_batch_is_caught_without_any_edit() -> None:
    model = " g (float[{n}, 3] x) => (float[{n}, 3] y) {{ y = Softmax<axis = 0>(x) }}"
    found = answer(text(model.format(n=2)), text(model.format(n="N")), 2, y=Batch(0))
    assert [p.node for p in found.failures] == ["y"]


def test_outputs_that_are_not_made_of_fewer_samples() -> None:
    """Sizes of parts that were taken for a batch: one sample makes one part."""
    model = """ g (float[{n}, 6] x, int64[{n}] s) => (float[{n}, 2] y, float[{n}, 4] z) {{
        y, z = Split<axis = 1>(x, s) }}"""
    found = answer(text(model.format(n=2)), text(model.format(n="N")), 2, y=Batch(0), z=Batch(0))
    assert "z" in [p.value for p in found.failures]


def test_a_wrong_claim_fails() -> None:
    found = answer(reshaped(1, 1, 12), reshaped("N", -1, 12), 1, r=Batch(0), y=Batch(0, 3))
    assert [p.node for p in found.failures] == ["y"]


def test_layers_of_one_form_are_evaluated_once_and_counted_each() -> None:
    layer = "a{k} = Softmax<axis = 1>({x})  "
    body = "".join(layer.format(k=k, x=f"a{k - 1}" if k else "x") for k in range(5))
    old, new = (
        text(f"g (float[{n}, 7] x) => (float[{n}, 7] a4) {{ {body} }}") for n in (1, "N")
    )
    found = answer(old, new, 1, **{f"a{k}": Batch(0) for k in range(5)})
    assert found.passed
    assert found.proven == 5


VIT = text(
    """ g (float[1, 4, 6] x) => (float[1, 5, 6] y)
    <int64[4] heads = {1, 5, 2, 3}, int64[3] back = {1, 5, 6}> {
    a = MatMul(x, W)
    c = Concat<axis = 1>(token, a)
    p = Add(c, position)
    h = Reshape(p, heads)
    q = Transpose<perm = [0, 2, 1, 3]>(h)
    k = Transpose<perm = [0, 2, 3, 1]>(h)
    s = MatMul(q, k)
    w = Softmax<axis = -1>(s)
    v = MatMul(w, q)
    t = Transpose<perm = [0, 2, 1, 3]>(v)
    y = Reshape(t, back)
    }""",
    W=floats(6, 6), token=floats(1, 1, 6), position=floats(1, 5, 6),
)  # fmt: skip


def test_what_is_right_is_freed_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        freed = free_batch(VIT)
    assert freed.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert not caplog.records


def test_a_tile_that_is_not_made_is_named_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "repeat_constants", lambda model, repeats: None)
    with pytest.raises(InputError, match=r"fixed to 1 by 'c': with 2 samples") as caught:
        free_batch(VIT)
    assert "report this" in (caught.value.hint or "")


def _keeps_its_sizes(node: BatchNode) -> list[State]:
    """A rule that forgets the constant."""
    return [Batch(0)]


def test_a_rule_that_is_wrong_frees_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Reshape", _keeps_its_sizes)
    with pytest.raises(InputError, match="fixed to 1 by 'h'"):
        bnpass.to_torch(VIT, batch="free")
    module = bnpass.to_torch(VIT)
    assert "'h'" in module.meta["bnpass"]["batch"]


def test_what_cannot_be_evaluated_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(RULES, "Bernoulli", lambda node: [node.batch()])
    model = text("g (float[1, 3] x) => (float[1, 3] y) { y = Bernoulli(x) }")
    with caplog.at_level(logging.WARNING):
        free_batch(model)
    assert "not proven at 'y'" in caplog.text


def test_a_region_reaches_through_values_of_unknown_rank() -> None:
    """An If whose branches have different ranks hides the shape of what it makes."""
    model = """ g (float[{n}, 6] x) => (float[{n}, 6] y)
        <bool c = {{1}}, int64[1] a = {{1}}, int64[2] shape = {{{first}, 6}}> {{
        z = If(c) <then_branch = t () => (float p) {{ p = Unsqueeze(x, a) }},
                   else_branch = e () => (float q) {{ q = Neg(x) }}>
        y = Reshape(z, shape) }}"""
    claims = {"z": Batch(0), "y": Batch(0)}
    old = text(model.format(n=1, first=1))
    for graph in (old.graph.node[0].attribute[0].g, old.graph.node[0].attribute[1].g):
        graph.output[0].type.tensor_type.ClearField("shape")
    for first, right in ((-1, True), (1, False)):
        new = text(model.format(n="N", first=first))
        found = answer(old, new, 1, **claims)
        assert not found.open
        assert found.passed is right


def test_large_axes_are_shortened_and_what_fails_there_is_tried_in_full() -> None:
    model = """ g (float[{n}, 300, 400] x) => (float[{n}, 120000] y)
        <int64[2] shape = {{{first}, 120000}}> {{
        s = Softmax(x)
        y = Reshape(s, shape) }}"""
    old = text(model.format(n=1, first=1))
    for first, right in ((-1, True), (1, False)):
        found = answer(old, text(model.format(n="N", first=first)), 1, s=Batch(0), y=Batch(0))
        assert (found.proven, len(found.failures)) == ((2, 0) if right else (1, 1))


def test_a_state_of_zeros_goes_and_another_one_does_not() -> None:
    """A recurrent layer's initial state for one sample."""
    layer = """ g (float[4, {n}, 3] x) => (float[4, 1, {n}, 5] y) {{
        y = GRU<hidden_size = 5>(x, W, R, , , {h}) }}"""
    weights = {"W": floats(1, 15, 3), "R": floats(1, 15, 5)}
    claims = {"x": Batch(1), "y": Batch(2)}
    for state, right in ((np.zeros((1, 1, 5), np.float32), True), (floats(1, 1, 5), False)):
        old = text(layer.format(n=1, h="h0"), h0=state, **weights)
        new = text(layer.format(n="N", h=""), **weights)
        assert answer(old, new, 1, **claims).passed is right
