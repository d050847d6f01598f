from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests import processes
from tests.training.together import work

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone():
    return work()


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(f"ranks{request.param}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={request.param}", "-m", "tests.training.together", str(out)]
    done = processes.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(out / "found.pt", weights_only=True)
    found["files"] = sorted(p.name for p in out.rglob("*"))
    return found


def assert_same(ours, theirs, rtol: float, atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=rtol, atol=atol, msg=lambda m, n=name:
                                   f"{n}: {m}")


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_gradients_are_those_of_the_same_batch_on_one_process(alone, together, net) -> None:
    # 44 samples on 2 and on 3 processes: the parts are 22, and 15, 15, 14.
    assert_same(together[f"{net} gradient"], alone[f"{net} gradient"], 1e-4, 1e-6)


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_running_statistics_are_those_of_the_whole_batch(alone, together, net) -> None:
    assert_same(together[f"{net} running"], alone[f"{net} running"], 1e-5, 1e-6)


@pytest.mark.parametrize("method", ["pooled", "paper"])
@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_population_statistics_are_those_of_one_process(alone, together, net, method) -> None:
    assert_same(together[f"{net} {method}"], alone[f"{net} {method}"], 1e-6, 1e-7)


def test_training_is_that_of_one_process(alone, together) -> None:
    assert_same(together["trained"], alone["trained"], 1e-3, 1e-4)
    torch.testing.assert_close(together["losses"], alone["losses"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(together["accuracy"], alone["accuracy"], rtol=0, atol=0.03)
    assert together["ranks differ by"] == 0


def test_only_the_first_process_writes(together) -> None:
    assert together["files"] == ["best.pt", "checkpoints", "found.pt", "last.pt", "metrics.csv"]
