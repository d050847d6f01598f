"""The benchmark of population statistics: what it calls exact is exact."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.population import (  # noqa: E402
    ROOT,
    compare,
    exact,
    markdown,
    measure,
    network,
    statistics_of,
)
from bnpass.pipeline.datasets import open_for  # noqa: E402
from bnpass.training import calibrate  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits(count: int):
    data = open_for(ROOT / "models" / "deep_sigmoid_mlp.onnx", str(ROOT / "models" / "data"))
    return data.subset(np.arange(count))


def test_exact_is_one_batch_of_everything():
    data = digits(300)
    gm = network("Tanh")
    right = exact(gm, torch.from_numpy(data.take(np.arange(300))[0]))
    calibrate(gm, data)
    found = statistics_of(gm)
    assert list(found) == list(right) and len(right) == 10
    for name, (mean, var) in right.items():
        torch.testing.assert_close(found[name][0], mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[name][1], var, rtol=1e-3, atol=1e-7)


def test_ratios():
    ones = (torch.zeros(2), torch.ones(2).double())
    twice = (torch.zeros(2), torch.tensor([1.0, 4.0]).double())
    first, behind = compare({"a": ones, "b": twice}, {"a": ones, "b": ones}, "net", "m", 2)
    assert (first.mean, first.worst) == (1.0, 1.0)
    assert behind.mean == pytest.approx(2.0) and behind.worst == pytest.approx(4.0)


def test_small_batches_show_what_design_says(monkeypatch):
    """Behind another BN the paper's factor over-corrects; pooling over large batches is right."""
    monkeypatch.setattr("benchmarks.population.NETS", {"sigmoid": "Sigmoid"})
    monkeypatch.setattr("benchmarks.population.STEPS", (20,))
    report = measure(digits(1000), digits(200), steps=30, sizes=(4, 500))
    behind = {(r.method, r.batch): r.mean for r in report.ratios if r.place == "behind"}
    assert behind["paper", 4] > 1.1
    assert behind["pooled", 500] == pytest.approx(1.0, abs=0.02)
    assert report.ema[0]["pooled"] > report.ema[0]["ema"] - 0.02
    text = markdown(report)
    assert "| sigmoid | paper | behind |" in text and "moving average" in text
