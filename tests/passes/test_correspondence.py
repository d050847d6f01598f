"""Every value of an edited graph is the map of an old one that the plan says it is."""

from __future__ import annotations

import pytest

from bnpass.frontends.onnx.folding import fold_model
from bnpass.frontends.onnx.inserting import insert_model, strip_model, without_norms
from bnpass.frontends.onnx.read import read
from bnpass.ir.affine import Map
from bnpass.ir.correspondence import Correspondence, Correspondences
from bnpass.onnx_model.model import OnnxModel
from tests.fuzz.generator import generate
from tests.fuzz.properties import EXACT, PRESERVE, ROOM, widened
from tests.fuzz.reference import evaluate
from tests.helpers import build, feeds


def assert_corresponds(before, after, known):
    """All old values hold, on either side of their correspondence; returns how many moved."""
    inputs = feeds(before)
    old, new = evaluate(before, inputs), evaluate(after, inputs)
    top = max(float(abs(a).max(initial=0)) for a in old.values() if a.dtype.kind == "f")
    graph = read(OnnxModel.of(before)).main.graph
    moved = 0
    for name, array in old.items():
        found = known.of(name)
        if found is None or graph.producer(name) is None or array.dtype.kind != "f":
            continue
        assert found.new in new, str(found)
        left, right = found.of_old(array), found.of_new(new[found.new])
        assert left.shape == right.shape == array.shape, str(found)
        error = float(abs(left - right).max(initial=0))
        scale = max(1.0, top, float(abs(left).max(initial=0)))
        assert error <= EXACT * scale, f"{found}: {error:.1e}"
        moved += found.old_map is not None or found.new_map is not None
    return moved


@pytest.mark.parametrize("group", range(4))
def test_every_value_of_folded_graphs_corresponds(group):
    moved = gone = 0
    for seed in range(11_000 + 30 * group, 11_030 + 30 * group):
        model = widened(generate(seed))
        done = fold_model(model, ROOM)
        moved += assert_corresponds(model, done.model, done.correspondences)
        gone += len(done.correspondences.gone)
    assert moved > 60
    assert gone < moved / 10


def test_every_value_of_graphs_with_inserted_norms_corresponds():
    moved = 0
    for seed in range(11_000, 11_060):
        model = widened(generate(seed, maps=0.08, nonlinear=0.3))
        done = insert_model(model, PRESERVE)
        moved += assert_corresponds(model, done.model, done.plan.edits.correspondences)
    assert moved > 12


def test_a_stripped_dropout_hands_its_value_on():
    model = build("(float[2, 3] x) => (float[2, 3] y) { d = Dropout(x) r = Relu(d) y = Neg(r) }")
    done = strip_model(model)
    known = done.plan.edits.correspondences
    assert known.of("d").new == "x"
    assert_corresponds(model, done.model, known)


def test_a_stripped_lrn_hands_its_value_on_in_a_network_that_has_none():
    model = build(
        "(float[1, 3, 2, 2] x) => (float[1, 3, 2, 2] y) "
        "{ r = Relu(x) n = LRN <size = 3> (r) y = Neg(n) }"
    )
    done = strip_model(model)
    known = done.plan.edits.correspondences
    assert [known.of(name).new for name in ("r", "n", "y")] == ["r", "r", "y"]
    assert_corresponds(without_norms(model, done.plan), done.model, known)


def test_correspondences_compose_where_no_side_determines_the_other():
    one = Map.along(1, 2, [2.0, 0.0], [1.0, 1.0])
    two = Map.along(1, 2, [0.0, 3.0], [5.0, 1.0])
    first = Correspondences({"a": Correspondence("a", "b", None, one)})
    second = Correspondences({"b": Correspondence("b", "c", two, None)})
    found = first.then(second).of("a")
    assert (found.old, found.new, found.axes) == ("a", "c", (1,))
    # a = one(b) and c = two(b): b is free where one's scale is 0
    b = Map.along(1, 2, [0.0, 0.0], [7.0, 9.0]).shift
    assert (found.of_old(one.of(b)) == found.of_new(two.of(b))).all()


def test_what_is_gone_stays_gone():
    first = Correspondences(gone=frozenset(["a"]))
    second = Correspondences({"b": Correspondence("b", "c")}, frozenset(["d"]))
    found = first.then(second)
    assert found.of("a") is None
    assert found.of("d") is None
    assert found.of("b").new == "c"
    assert found.of("e").new == "e"
    assert found.changed == {"a", "b", "d"}
