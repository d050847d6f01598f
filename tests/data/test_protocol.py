from __future__ import annotations

import numpy as np
import pytest

from bnpass.data.protocol import Slot, Takes, bind, labelled, unlabelled
from bnpass.data.trees import count, joined, leaves, mapped, structure
from bnpass.errors import InputError

A, B, Y = np.zeros((4, 2)), np.ones((4, 3)), np.arange(4)
ONE = Takes((Slot("x"),))
TWO = Takes((Slot("x"), Slot("z", also=("z.1",), kind="float32[N,3]")))
OPTIONAL = Takes((Slot("x"), Slot("mask", required=False)))
ANY = Takes((), more=True, any_name=True)


def bound(item, takes):
    call, targets = unlabelled(item, takes)
    return call.args, dict(call.kwargs), targets


@pytest.mark.parametrize(("item", "takes", "args", "kwargs", "targets"), [
    (A, ONE, (A,), {}, None),
    ((A,), ONE, (A,), {}, None),
    ([A, Y], ONE, (A,), {}, Y),
    ((A, B), TWO, (A, B), {}, None),
    ((A, B, Y), TWO, (A, B), {}, Y),
    (((A, B), Y), TWO, (A, B), {}, Y),
    ((A, B), OPTIONAL, (A,), {}, B),
    ((A, B, Y), OPTIONAL, (A, B), {}, Y),
    (((A, B), Y), OPTIONAL, (A, B), {}, Y),
    (((A, B), Y), ONE, ((A, B),), {}, Y),
    ((A, {"boxes": B}), ONE, (A,), {}, {"boxes": B}),
    ({"x": A, "label": Y}, ONE, (), {"x": A}, Y),
    ({"label": Y, "z.1": B, "x": A}, TWO, (), {"z": B, "x": A}, Y),
    ({"x": A, "target.x": Y}, ONE, (), {"x": A}, Y),
    ({"x": A, "p": B, "q": Y}, ONE, (), {"x": A}, {"p": B, "q": Y}),
    (({"x": A}, Y), ONE, (), {"x": A}, Y),
    ((A, B), ANY, (A,), {}, B),
    ({"p": A}, ANY, (), {"p": A}, None),
])
def test_where_the_parts_of_a_batch_go(item, takes, args, kwargs, targets) -> None:
    found = bound(item, takes)
    for got, want in zip(found, (args, kwargs, targets), strict=True):
        assert [id(x) for x in leaves(got)] == [id(x) for x in leaves(want)]
    assert list(found[1]) == list(kwargs)


@pytest.mark.parametrize(("item", "takes", "text", "hint"), [
    (A, TWO, r"no array for input 'z' \(float32\[N,3\]\)", "holds 1 of the 2 inputs"),
    ({"x": A, "y": Y}, TWO, "no array for input 'z'", "the batch holds x, y"),
    (((A, B, B), Y), TWO, "3 inputs in a batch for a network with 2: x, z", "targets as a tuple"),
    ((), ONE, "a batch without arrays", "inputs"),
])
def test_what_is_missing_or_too_much_is_named(item, takes, text, hint) -> None:
    with pytest.raises(InputError, match=text) as caught:
        unlabelled(item, takes)
    assert hint in caught.value.hint


def test_positional_only_inputs_are_passed_in_order() -> None:
    takes = Takes((Slot("x", keyword=False), Slot("z", keyword=False)))
    call = bind({"z": B, "x": A}, takes)
    assert [id(x) for x in call.args] == [id(A), id(B)] and not call.kwargs


def test_training_wants_targets() -> None:
    assert labelled((A, Y), ONE)[1] is Y
    assert labelled(((A, B), Y), TWO)[0].args == (A, B)
    for item in (A, (A,), (A, B, Y)):
        with pytest.raises(InputError, match="is no labelled batch"):
            labelled(item, TWO)
    with pytest.raises(InputError, match="no targets"):
        labelled({"x": A}, ONE)


def test_trees() -> None:
    tree = {"a": (A, [B]), "b": 3}
    assert count((A, {"b": [A], "c": None})) == 4
    assert count((A, np.zeros(3))) is None and count((A, [1, 2, 3, 4])) is None
    twice = joined([tree, tree])
    assert twice["a"][0].shape == (8, 2) and twice["b"] == 3
    assert structure(tree) == structure(twice) != structure({"a": (A, [A]), "b": 3})
    assert mapped(tree, len) == {"a": (4, [4]), "b": 3}


def test_a_flat_tuple_is_all_inputs_where_it_is_like_the_example_or_has_a_gap():
    slots = (Slot("ids"), Slot("mask", required=False), Slot("other", required=False))
    ids, other, labels = np.zeros((4, 3)), np.zeros((4, 2)), np.zeros(4, np.int64)
    free, known = Takes(slots), Takes(slots, example=((2, True), (2, True)))
    assert unlabelled((ids, None, other), free)[0].args == (ids, None, other)
    assert unlabelled((ids, other), free)[1] is other
    assert unlabelled((ids, other), known)[0].args == (ids, other)
    assert unlabelled((ids, labels), known)[1] is labels
    call, targets = unlabelled((ids, None, labels), Takes(slots, example=((2, True), None)))
    assert call.args == (ids, None) and targets is labels
