"""The nine light models of the onnx package: sites, folds, and numbers with seeded weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnpass
from tests.helpers import assert_same, feeds, nodes, run
from tests.helpers_insert import with_statistics

FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"

# nonlinearities, sites, BatchNorms, BatchNorms that stay when folded
FACTS = {
    "bvlc_alexnet": (7, 7, 0, 0),
    "densenet121": (121, 0, 121, 62),  # a pre-activation's skip reads what its BN normalises
    "inception_v1": (57, 57, 0, 0),
    "inception_v2": (69, 0, 69, 0),
    "resnet50": (49, 0, 53, 0),
    "shufflenet": (33, 0, 49, 0),
    "squeezenet": (26, 25, 0, 0),  # the last one stands in front of the output
    "vgg19": (18, 18, 0, 0),
    "zfnet512": (7, 7, 0, 0),
}
LARGE = {"bvlc_alexnet", "vgg19", "zfnet512"}  # hundreds of megabytes once their weights are real


@cache
def light(name):
    return onnx.load(FOLDER / f"light_{name}.onnx")


def norms(model):
    return sum(n.op_type == "BatchNormalization" for n in nodes(model.graph))


@pytest.mark.parametrize("name", FACTS)
def test_every_nonlinearity_has_a_site_or_a_reason(name, monkeypatch):
    if name in LARGE:  # weights that ConstantOfShape makes: more than a small file may ask for
        monkeypatch.setenv("BNPASS_LIMITS", "constants=2G")
    nonlinearities, sites, _, _ = FACTS[name]
    plan = bnpass.insert(light(name), plan_only=True)
    assert plan.nonlinearities == nonlinearities
    assert len(plan.sites) == plan.dropped == sites
    assert len(plan.skipped) == nonlinearities - sites and all(s.reason for s in plan.skipped)
    if sites == 0:
        assert all("already normalised" in s.reason for s in plan.skipped)


@pytest.mark.parametrize("name", [n for n, f in FACTS.items() if f[2]])
def test_batch_norms_that_are_there_fold(name):
    model = light(name)
    assert norms(model) == FACTS[name][2]
    plan = bnpass.fold(model, plan_only=True)
    assert len(plan.refused) == FACTS[name][3]
    assert all(e.reason for e in plan.refused)


@pytest.mark.parametrize("name", [n for n, f in FACTS.items() if f[1] and n not in LARGE])
def test_inserting_and_folding_gives_the_plain_network(name):
    model = light(name)
    trainable = bnpass.insert(model)
    assert norms(trainable) == FACTS[name][1]
    folded = bnpass.fold(trainable, verify=False, max_growth=1e9)
    assert norms(folded) == 0
    kinds = [n.op_type for n in folded.graph.node if n.op_type != "ConstantOfShape"]
    assert kinds == [n.op_type for n in model.graph.node if n.op_type != "ConstantOfShape"]


# --- numbers


def seeded(name):
    """A copy whose weights are He-scaled and whose statistics are random, negative gammas too."""
    model = onnx.ModelProto()
    model.CopyFrom(light(name))
    model.ir_version = 4  # from here on an initializer that is listed as an input may be overridden
    known = {t.name for t in model.graph.initializer}
    for value in [v for v in model.graph.input if v.name in known]:
        model.graph.input.remove(value)
    rng = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {n.output[0]: shapes[n.input[0]] for n in model.graph.node
            if n.op_type == "ConstantOfShape"}  # fmt: skip
    norm = {}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            norm.update({name: place for place, name in enumerate(node.input[1:])})
    for value, shape in made.items():
        array = _weights(rng, [int(n) for n in shape], norm.get(value))
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), value))
    for node in [n for n in model.graph.node if n.op_type == "ConstantOfShape"]:
        model.graph.node.remove(node)
    return model


def _weights(rng, shape, place):
    if place is None:
        fan = np.prod(shape[1:]) if len(shape) > 1 else 100
        return rng.normal(size=shape) * np.sqrt(2 / fan)
    if place == 3:
        return rng.uniform(0.5, 1.5, shape)
    draws = rng.normal(size=shape) * 0.2
    return draws + rng.choice([-1, 1], shape, p=[0.2, 0.8]) if place == 0 else draws


@pytest.mark.parametrize("name", ["inception_v1", "squeezenet"])
def test_seeded_networks_keep_their_outputs(name):
    model = seeded(name)
    inputs = feeds(model)
    (a,) = run(model, inputs).values()
    (b,) = run(model, feeds(model, seed=1)).values()
    assert abs(a - b).max() > 1e-3 * abs(a).max(), "the output does not vary with the input"
    trainable = bnpass.insert(model, init="preserve")
    assert_same(model, trainable)
    trained = with_statistics(trainable, {n.name for n in trainable.graph.node
                                          if n.op_type == "BatchNormalization"})  # fmt: skip
    folded = bnpass.fold(trained, verify=False)
    assert norms(folded) == 0
    assert_same(trained, folded, 1e-4)


@pytest.mark.parametrize("name", ["shufflenet", "resnet50"])
def test_seeded_networks_fold(name):
    model = seeded(name)
    folded = bnpass.fold(model, verify=False)
    assert norms(folded) == 0
    assert_same(model, folded, 1e-4)
