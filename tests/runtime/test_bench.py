from __future__ import annotations

import json

import numpy as np
import pytest

from bnpass.errors import UsageError
from bnpass.runtime.bench import bench, ratio_of
from tests.runtime.conftest import text


def test_rows_and_ratios(mlp, convnet):
    report = bench({"small": mlp, "large": convnet}, batches=(1, 4), threads=(1,), runs=20)
    assert [(r.model, r.batch) for r in report.rows] == [
        ("small", 1),
        ("large", 1),
        ("small", 4),
        ("large", 4),
    ]
    for row in report.rows:
        assert 0 < row.p50 <= row.p90 <= row.p99
        assert row.throughput == pytest.approx(1e3 * row.batch / row.p50)
        assert row.runs == 20
    for ratio in report.ratios:
        assert ratio.model == "large" and ratio.baseline == "small"
        assert ratio.low <= ratio.ratio <= ratio.high
    json.dumps(report.to_dict(), allow_nan=False)


def test_fixed_batch_is_noted():
    model = text(" g (float[3, 4] x) => (float[3, 4] y) { y = Relu(x) }")
    report = bench([model, model], batches=(1, 8), runs=5)
    assert {r.batch for r in report.rows} == {3}
    assert [r.model for r in report.rows] == ["model", "model (2)"]
    assert "fixed" in report.notes[0]


def test_nothing_to_time():
    with pytest.raises(UsageError):
        bench([])


def test_interval_holds_the_true_ratio():
    generator = np.random.default_rng(0)
    drift = generator.uniform(1, 3, 200)  # the machine slows both of a pair
    times, baseline = 1.2 * drift * generator.normal(1, 0.01, 200), drift
    ratio, low, high = ratio_of(times, baseline, generator)
    assert low < 1.2 < high and low <= ratio <= high
    assert high - low < 0.2
