"""A few hundred random graphs; ``make fuzz`` runs thousands."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.fuzz.generator import generate
from tests.fuzz.properties import check_fold, check_insert, check_type

GROUPS = 10
SIZE = 25


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_graphs_fold_exactly(group):
    counts = [check_fold(seed) for seed in range(group * SIZE, (group + 1) * SIZE)]
    assert sum(c.after for c in counts) < sum(c.before for c in counts)


def test_deep_graphs_of_structure_fold_exactly():
    for seed in range(5000, 5020):
        check_fold(seed, steps=40, maps=0.2, nonlinear=0.02)


def test_weights_worked_out_piece_by_piece_fold_as_exactly(monkeypatch):
    monkeypatch.setattr("bnpass.ir.weights.LARGE", 1)
    monkeypatch.setattr("bnpass.ir.scaled._PIECE", 5)
    for seed in range(9000, 9040):
        check_fold(seed)
    for seed in range(7000, 7010):
        check_type(seed, np.float16, 2.0**-11)


def test_float16_is_rounded_once():
    for seed in range(7000, 7060):
        check_type(seed, np.float16, 2.0**-11)


def test_bfloat16_is_rounded_once():
    checked = 0
    for seed in range(7000, 7200):
        try:
            generate(seed, dtype=ml_dtypes.bfloat16)
        except onnx.shape_inference.InferenceError:  # opset 21 has no such Conv, pool, Resize ...
            continue
        check_type(seed, ml_dtypes.bfloat16, 2.0**-8)
        checked += 1
    assert checked > 40


@pytest.mark.parametrize("group", range(GROUPS))
def test_whatever_is_inserted_folds_and_keeps_the_outputs(group):
    assert sum(check_insert(seed) for seed in range(group * SIZE, (group + 1) * SIZE)) > SIZE // 5


def test_a_seed_decides_everything():
    one, other = generate(7), generate(7)
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert generate(8) != one


def test_the_generator_draws_from_the_whole_table():
    from bnpass.ir.operators import RULES

    kinds = {n.op_type for seed in range(900) for n in generate(seed).graph.node}
    quantised = {kind for kind in RULES if "Linear" in kind or "Integer" in kind}
    missing = set(RULES) - kinds - quantised - {"GroupNormalization", "Upsample"}
    assert not missing
    assert isinstance(generate(0), onnx.ModelProto)
