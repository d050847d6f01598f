"""The benchmark of placements: equal starts, the sites that it compares, its table."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import bnpass  # noqa: E402
from benchmarks.placement.__main__ import table  # noqa: E402
from benchmarks.placement.nets import NETS, nothing, published  # noqa: E402
from benchmarks.placement.run import Outcome, Trial  # noqa: E402

SITES = {"VGG-like": 7, "MLP, sigmoid": 6, "ResNet-like": 21, "ResNet-like, all projected": 28,
         "pre-activation ResNet": 21, "DenseNet-like": 10, "ViT-like (LayerNorm)": 3}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_all_arms_start_with_the_same_weights(name):
    states = []
    for norm in (nothing, published):
        torch.manual_seed(3)
        states.append(NETS[name](norm).state_dict())
    plain, normed = states
    keys = [key for key in plain if key in normed]
    assert keys and all(torch.equal(plain[key], normed[key]) for key in keys)


@pytest.mark.parametrize("name", SITES)
def test_sites(name):
    plan = bnpass.insert(NETS[name](nothing), (torch.zeros(2, 1, 14, 14),), plan_only=True)
    assert len(plan.sites) == SITES[name], [skip.reason for skip in plan.skipped]


def test_the_table_pairs_seeds():
    def outcomes(arm: str, values: list[float]) -> list[Outcome]:
        return [Outcome(Trial("net", arm, "SGD", 0.1, seed, 1, None), value, 3, 0, 0.0, 2.0)
                for seed, value in enumerate(values)]  # fmt: skip

    done = [*outcomes("plain", [0.1, 0.1]), *outcomes("published", [0.5, 0.7]),
            *outcomes("ours", [0.6, 0.8])]  # fmt: skip
    rates = {("net", arm, "SGD"): 0.1 for arm in ("plain", "published", "ours")}
    (line,) = table(done, rates)[2:]
    assert "70.0 (lr 0.1)" in line and "+10.00 ± 0.00" in line and "| 0 | 1.00 |" in line
