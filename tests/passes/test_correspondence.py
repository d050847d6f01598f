"""Every value of a folded graph is the map of an old one that its plan says it is."""

from __future__ import annotations

import pytest

from bnpass.frontends.onnx.folding import fold_model
from bnpass.frontends.onnx.read import read
from tests.fuzz.generator import generate
from tests.fuzz.properties import EXACT, ROOM, widened
from tests.fuzz.reference import evaluate
from tests.helpers import feeds


def assert_corresponds(before, done):
    """All old values hold, on either side of their correspondence; returns how many moved."""
    inputs = feeds(before)
    old, new = evaluate(before, inputs), evaluate(done.model, inputs)
    top = max(float(abs(a).max(initial=0)) for a in old.values() if a.dtype.kind == "f")
    graph = read(before).main.graph
    moved = 0
    for name, array in old.items():
        found = done.correspondences.of(name)
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
def test_every_value_of_random_graphs_corresponds(group):
    moved = 0
    for seed in range(11_000 + 30 * group, 11_030 + 30 * group):
        model = widened(generate(seed))
        moved += assert_corresponds(model, fold_model(model, ROOM))
    assert moved > 30
