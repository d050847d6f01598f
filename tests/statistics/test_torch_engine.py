from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.utils.data import DataLoader, TensorDataset

from bnpass.data import from_arrays
from bnpass.errors import InputError, UsageError
from bnpass.nn.norms import batch_norms
from bnpass.statistics.source import Source
from bnpass.training import calibrate, freeze
from tests.training.nets import blobs, convnet, images, mlp


def exact(gm: fx.GraphModule, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer by layer in float64 over the whole set at once: the definition of what is wanted."""
    gm = copy.deepcopy(gm).double().eval()
    found = {}

    class Exact(fx.Interpreter):
        def call_module(self, target, args, kwargs):
            module = self.fetch_attr(target)
            if "BatchNorm" not in type(module).__name__:
                return super().call_module(target, args, kwargs)
            axes = [d for d in range(args[0].ndim) if d != 1]
            var, mean = torch.var_mean(args[0], axes, correction=0)
            found[target] = (mean, var)
            module.running_mean, module.running_var = mean, var
            return module(args[0])

    with torch.no_grad():
        Exact(gm).run(x.double())
    return found


def assert_statistics(gm, expected, rtol) -> None:
    for name, norm in batch_norms(gm).items():
        mean, var = expected[name]
        spread = var.sqrt()
        assert ((norm.running_mean.double() - mean).abs() / spread).max() < rtol, name
        assert (norm.running_var.double() / var - 1).abs().max() < rtol, name


@pytest.mark.parametrize("make", [mlp, convnet])
def test_one_batch_gives_the_exact_statistics(make) -> None:
    gm = make()
    x = torch.from_numpy((blobs(300) if make is mlp else images(300)).take(np.arange(300))[0])
    assert calibrate(gm, x) is gm
    assert not gm.training
    assert_statistics(gm, exact(gm, x), 1e-5)


def test_large_batches_are_within_a_third_of_a_percent() -> None:
    gm = mlp()
    x = torch.from_numpy(blobs(10_000).take(np.arange(10_000))[0])
    expected = exact(gm, x)
    calibrate(gm, x, batch_size=1000)
    assert_statistics(gm, expected, 3e-3)


def test_first_layer_is_exact_in_batches_of_any_size() -> None:
    gm = mlp()
    x = torch.from_numpy(blobs(1003).take(np.arange(1003))[0])
    expected = exact(gm, x)
    calibrate(gm, [x[:3], x[3:500], x[500:]], batch_size=90)
    first = gm.get_submodule("1")
    torch.testing.assert_close(first.running_mean.double(), expected["1"][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.running_var.double(), expected["1"][1], rtol=1e-5, atol=0)


def test_paper_averages_the_unbiased_batch_variances() -> None:
    gm = mlp()
    x = torch.from_numpy(blobs(60).take(np.arange(60))[0])
    with torch.no_grad():
        order = torch.from_numpy(np.random.default_rng(0).permutation(60))
        seen = gm.get_submodule("0")(x[order]).double().reshape(3, 20, 16)
    calibrate(gm, [x], method="paper", batch_size=20)
    torch.testing.assert_close(gm.get_submodule("1").running_var.double(), seen.var(1).mean(0),
                               rtol=1e-5, atol=0)


def test_ema_is_what_training_mode_would_leave_behind() -> None:
    x = torch.from_numpy(blobs(60).take(np.arange(60))[0])
    gm, trained = mlp(), mlp().train()
    calibrate(gm, list(x.split(20)), method="ema")
    for part in x.split(20):
        trained(part)
    for name, norm in batch_norms(gm).items():
        torch.testing.assert_close(norm.running_mean, trained.get_submodule(name).running_mean)
        torch.testing.assert_close(norm.running_var, trained.get_submodule(name).running_var)


def test_every_kind_of_source_gives_the_same() -> None:
    data = blobs(250)
    x, y = (torch.from_numpy(part) for part in data.take(np.arange(250)))
    sources = [data, x, x.numpy(), TensorDataset(x, y), DataLoader(TensorDataset(x, y), 50),
               [(x[:100], y[:100]), (x[100:], y[100:])], iter([x])]
    results = [calibrate(mlp(), source).state_dict() for source in sources]
    for state in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


def test_same_seed_same_bits() -> None:
    data = blobs(2500)
    a, b, c = (calibrate(mlp(), data, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["5.running_var"], c["5.running_var"])


def test_dropout_is_off_and_weights_stay() -> None:
    gm = mlp(dropout=0.5)
    before = {k: v.clone() for k, v in gm.named_parameters()}
    x = torch.from_numpy(blobs(200).take(np.arange(200))[0])
    gm.train()
    calibrate(gm, x)
    assert_statistics(gm, exact(gm, x), 1e-5)
    assert all(torch.equal(v, before[k]) for k, v in gm.named_parameters())
    assert not any(m.training for m in gm.modules())


def test_frozen_norms_keep_their_statistics() -> None:
    gm = mlp()
    freeze(gm.get_submodule("1"))
    calibrate(gm, blobs(200))
    assert gm.get_submodule("1").running_mean.abs().max() == 0
    assert gm.get_submodule("5").running_mean.abs().max() > 0
    other = mlp().train()
    other.get_submodule("5").eval()
    calibrate(other, blobs(200))
    assert other.get_submodule("1").running_mean.abs().max() > 0
    assert other.get_submodule("5").running_mean.abs().max() == 0


def test_norm_that_is_called_twice_sees_both() -> None:
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.bn(x) + self.bn(10 - x)

    gm = fx.symbolic_trace(Twice())
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    calibrate(gm, x)
    torch.testing.assert_close(gm.bn.running_mean, torch.full((2,), 5.0))
    torch.testing.assert_close(gm.bn.running_var, torch.cat([x, 10 - x]).var(0, correction=0))


def test_large_mean_costs_no_precision() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.BatchNorm1d(3)))
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) + 1000
    calibrate(gm, x)
    wanted = x.double().var(0, correction=0)
    torch.testing.assert_close(gm.get_submodule("0").running_var.double(), wanted, rtol=1e-5,
                               atol=0)


@pytest.mark.parametrize("make", [nn.BatchNorm3d, nn.SyncBatchNorm])
def test_other_ranks_and_kinds(make) -> None:
    gm = fx.symbolic_trace(nn.Sequential(make(2)))
    x = torch.randn(40, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    calibrate(gm, x)
    torch.testing.assert_close(gm.get_submodule("0").running_var,
                               x.var((0, 2, 3, 4), correction=0))


def test_memory_budget_makes_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    gm = convnet()
    gm.register_forward_pre_hook(lambda _m, args: sizes.append(len(args[0])))
    calibrate(gm, images(100), memory_budget=6 * 20 * 4 * 4 * 4 * 4)
    assert sizes == [2] + [20] * 5


@pytest.mark.parametrize("traced", [True, False])
def test_network_with_two_inputs(traced: bool) -> None:
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, a, b):
            return self.bn(a - b)

    gm = fx.symbolic_trace(Two()) if traced else Two()
    a, b = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))
    calibrate(gm, [(a, b, torch.zeros(50))])
    torch.testing.assert_close(gm.bn.running_mean, (a - b).mean(0))
    with pytest.raises(InputError, match="no array for input 'b'"):
        calibrate(gm, [a])


def test_what_cannot_be_shuffled_and_comes_sorted_is_warned_about(caplog, monkeypatch) -> None:
    x = torch.randn(240, 12, generator=torch.Generator().manual_seed(0))
    x = x + 3 * torch.arange(4).repeat_interleave(60)[:, None]
    labels = torch.arange(4).repeat_interleave(60)
    order = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    calibrate(mlp(), DataLoader(TensorDataset(x, labels), 60))
    assert "sorted" not in caplog.text  # all of it fits into memory, and is shuffled
    monkeypatch.setitem(Source.__init__.__kwdefaults__, "budget", 100)
    calibrate(mlp(), list(x[order].split(60)), batch_size=60)
    assert "sorted" not in caplog.text
    calibrate(mlp(), DataLoader(TensorDataset(x, labels), 15), batch_size=15)
    assert "labels come sorted" in caplog.text
    calibrate(mlp(), list(x.split(15)), batch_size=15)
    assert "the samples come sorted" in caplog.text


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_labels_of_any_type_are_left_alone(dtype: torch.dtype) -> None:
    x = torch.randn(100, 12)
    labels = (torch.arange(100) % 4).to(dtype)
    labels.requires_grad_(dtype.is_floating_point)
    assert not calibrate(mlp(), [(x, labels)]).training


def test_few_elements_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    calibrate(mlp(), blobs(30))
    assert "only 30 elements" in caplog.text


def test_errors() -> None:
    with pytest.raises(InputError, match="no data"):
        calibrate(mlp(), [])
    with pytest.raises(InputError, match="a single value per channel"):
        calibrate(mlp(), torch.zeros(1, 12))
    with pytest.raises(InputError, match="not finite"):
        calibrate(mlp(), torch.full((60, 12), float("nan")))
    with pytest.raises(InputError, match="cannot take batches from int"):
        calibrate(mlp(), 3)
    with pytest.raises(UsageError, match="unknown method") as caught:
        calibrate(mlp(), blobs(30), method="poled")
    assert "pooled" in caught.value.hint
    with pytest.raises(UsageError, match="batch size 1"):
        calibrate(mlp(), blobs(30), batch_size=1)


def test_without_norms_nothing_is_done() -> None:
    gm = mlp(norm=False)
    assert calibrate(gm, from_arrays(np.zeros((3, 12), np.float32))) is gm
    assert not gm.training


class Doubled(nn.BatchNorm1d):
    """A norm with a forward of its own."""

    def forward(self, x):
        return 2 * torch.relu(super().forward(x))


def test_a_subclass_with_its_own_forward_computes_it_meanwhile() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Doubled(5), nn.BatchNorm1d(5)).double()
    x = 3 * torch.randn(300, 5, dtype=torch.float64) + 1
    calibrate(net, x)
    assert not net[0].training and int(net[0].num_batches_tracked) == 0
    torch.testing.assert_close(net[0].running_mean, x.mean(0))
    torch.testing.assert_close(net[0].running_var, x.var(0, correction=0))
    behind = 2 * torch.relu((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
    torch.testing.assert_close(net[1].running_mean, behind.mean(0))


def test_all_norms_get_statistics_or_none_does() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)).half()
    with torch.no_grad():
        net[1].weight.mul_(3e3)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match="of 2 are not finite in float16"):
        calibrate(net, torch.randn(400, 3, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("given", [np.float64, np.float32, np.uint8, np.int32])
def test_numbers_are_cast_to_the_networks_type(given) -> None:
    x = np.random.default_rng(0).integers(0, 9, (300, 12)).astype(given)
    want = calibrate(mlp(), x.astype(np.float32)).state_dict()
    for name, value in calibrate(mlp(), x).state_dict().items():
        torch.testing.assert_close(value, want[name])
    for name, value in calibrate(mlp().double(), x).state_dict().items():
        torch.testing.assert_close(value, want[name], check_dtype=False, rtol=1e-4, atol=1e-5)


def test_integers_stay_what_they_are_where_the_network_looks_them_up() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5))
    assert calibrate(net, np.random.default_rng(0).integers(0, 9, (60, 3))) is net


def test_mappings_and_nested_batches_are_bound_by_name() -> None:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, a, *, pair):
            return self.bn(a + pair[0] * pair[1])

    a, b, c = torch.randn(3, 80, 2, generator=torch.Generator().manual_seed(0))
    batches = [{"labels": torch.zeros(40), "pair": (b[i:i + 40], c[i:i + 40]), "a": a[i:i + 40]}
               for i in (0, 40)]
    net = calibrate(Net(), batches)
    torch.testing.assert_close(net.bn.running_mean, (a + b * c).mean(0))
    with pytest.raises(InputError, match="no array for input 'pair'"):
        calibrate(Net(), [{"a": a}])


def test_frozen_norms_stay_so_in_training_mode() -> None:
    gm = freeze(mlp()).train()
    before = [b.clone() for norm in batch_norms(gm).values() for b in norm.buffers()]
    gm(5 * torch.randn(50, 12))
    copied = copy.deepcopy(gm).train()
    copied(5 * torch.randn(50, 12))
    for net in (gm, copied):
        after = [b for norm in batch_norms(net).values() for b in norm.buffers()]
        assert all(map(torch.equal, before, after))


def test_without_a_norm_that_is_said(caplog) -> None:
    calibrate(nn.Sequential(nn.Linear(4, 4)), torch.randn(9, 4))
    assert "no BatchNorm" in caplog.text
