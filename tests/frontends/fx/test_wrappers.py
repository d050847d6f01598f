"""Inserted and folded modules in what people wrap and train them with."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import bnpass
from bnpass.errors import UnsupportedError
from tests.frontends.fx.helpers import close, norms, randomize, run

X = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Middle(nn.Module):
    """A site in the middle of a forward: one module becomes a graph."""

    def __init__(self):
        super().__init__()
        self.w, self.c = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 6)

    def forward(self, x):
        return self.c(torch.sigmoid(x @ self.w)).view(len(x), -1)


class Net(nn.Module):
    """Anchors of each kind: behind a convolution, in front of an activation, inside."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.act, self.middle, self.o = nn.ReLU(), Middle(), nn.Linear(6, 2)

    def forward(self, x):
        h = self.act(self.b(torch.relu(self.a(x))) * 2)
        return self.o(torch.tanh(self.middle(h.mean((2, 3)))))


@pytest.fixture
def made():
    torch.manual_seed(0)
    return randomize(bnpass.insert(Net().eval(), X))


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step(module):
    module.train()(*X).square().mean().backward()
    assert all(p.grad is not None for p in module.parameters())
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    return module.eval()


def test_anchors_of_each_kind(made):
    paths = [k for k, m in made.named_modules() if m in norms(made)]
    assert paths == ["a.output_bn", "act.input_bn", "middle.matmul_bn", "middle.view_bn"]


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies(made, way, tmp_path):
    if way == "save":
        torch.save(made, tmp_path / "m.pt")
        other = torch.load(tmp_path / "m.pt", weights_only=False)
    else:
        other = copy.deepcopy(made) if way == "deepcopy" else pickle.loads(pickle.dumps(made))
    close(run(other, X), run(made, X), 0)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in made.parameters()}
    folded = bnpass.fold(step(other))
    assert not norms(folded)
    close(run(folded, X), run(other, X), 1e-4)
    again = pickle.loads(pickle.dumps(folded))
    close(run(again, X), run(folded, X), 0)


def test_traced_by_jit(made):
    for module in (made, bnpass.fold(made)):
        traced = torch.jit.trace(module, X)
        close(run(traced, X), run(module, X), 1e-5)


def test_data_parallel_and_compile_are_taken_off(made, caplog):
    for wrapped in (nn.DataParallel(made), torch.compile(made, backend="eager")):
        with caplog.at_level("INFO", "bnpass"):
            folded = bnpass.fold(wrapped)
        assert type(folded) is Net and not norms(folded)
        close(run(folded, X), run(made, X), 1e-4)
        assert type(wrapped).__name__ in caplog.text


@pytest.mark.parametrize("ema", [False, True])
def test_averages_of_weights(made, ema):
    averaged = AveragedModel(made, multi_avg_fn=get_ema_multi_avg_fn(0.9) if ema else None,
                             use_buffers=ema)  # fmt: skip
    for _ in range(2):
        step(made)
        averaged.update_parameters(made)
    update_bn([X[0]], averaged)
    averaged.eval()
    folded = bnpass.fold(averaged)
    assert type(folded) is Net and not norms(folded)
    close(run(folded, X), run(averaged, X), 1e-4)


@pytest.mark.usefixtures("alone")
def test_data_parallel_processes(made):
    wrapped = nn.parallel.DistributedDataParallel(made)
    step(wrapped)
    folded = bnpass.fold(wrapped)
    assert type(folded) is Net
    close(run(folded, X), run(made, X), 1e-4)


@pytest.mark.parametrize("ranks", [1, 2])
def test_that_statistics_differ_by_rank_is_said(ranks, caplog, monkeypatch):
    monkeypatch.setattr("bnpass.frontends.fx.module_insert.world", lambda: ranks)
    bnpass.insert(Net(), X)
    assert ("differ by rank until bnpass.calibrate" in caplog.text) is (ranks > 1)
    caplog.clear()
    bnpass.insert(Net(), X, sync=True)
    assert "differ by rank" not in caplog.text


@pytest.mark.usefixtures("alone")
def test_sharded_parameters_are_refused_with_the_recipe_and_the_recipe_works(made):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded = copy.deepcopy(made)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    step(sharded)
    for call in (bnpass.fold, lambda m: bnpass.insert(m, X)):
        with pytest.raises(UnsupportedError, match="sharded") as caught:
            call(sharded)
        assert "full state_dict" in caught.value.hint and "before" in caught.value.hint
    full = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    made.load_state_dict(full)
    folded = bnpass.fold(made.eval())
    assert not norms(folded)
    close(run(folded, X), run(sharded, X), 1e-4)
