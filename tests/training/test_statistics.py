from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.utils.data import DataLoader, TensorDataset

from bnpass.data import from_arrays
from bnpass.errors import InputError, UsageError
from bnpass.training import calibrate, freeze
from bnpass.training.grouping import Source
from bnpass.training.norms import batch_norms
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
        seen = gm.get_submodule("0")(x).double().reshape(3, 20, 16)
    calibrate(gm, [x], method="paper", batch_size=20)
    torch.testing.assert_close(gm.get_submodule("1").running_var.double(), seen.var(1).mean(0),
                               rtol=1e-5, atol=0)


def test_ema_is_torchs_moving_average() -> None:
    gm = mlp()
    x = torch.from_numpy(blobs(60).take(np.arange(60))[0])
    with torch.no_grad():
        first, *others = gm.get_submodule("0")(x).double().reshape(3, 20, 16)
    mean, var = first.mean(0), first.var(0)
    for part in others:
        mean, var = 0.9 * mean + 0.1 * part.mean(0), 0.9 * var + 0.1 * part.var(0)
    calibrate(gm, [x], method="ema", batch_size=20)
    torch.testing.assert_close(gm.get_submodule("1").running_mean.double(), mean)
    torch.testing.assert_close(gm.get_submodule("1").running_var.double(), var)


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


def test_remainder_is_spread_over_the_batches() -> None:
    sizes = [len(b) for (b,) in Source(torch.zeros(2100, 1)).batches(1000)]
    assert sizes == [700, 700, 700]
    stream = [torch.zeros(n, 1) for n in (7, 900, 400, 793)]
    sizes = [len(b) for (b,) in Source(stream).batches(1000)]
    assert sizes == [1000, 550, 550]


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
    with pytest.raises(InputError, match="a network with 2 inputs"):
        calibrate(gm, [a])


def test_sorted_labels_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(200, 12)
    shuffled = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING, "bnpass"):
        calibrate(mlp(), DataLoader(TensorDataset(x, shuffled), 20))
        assert "sorted" not in caplog.text
        calibrate(mlp(), DataLoader(TensorDataset(x, shuffled.sort().values), 20))
    assert "labels come sorted" in caplog.text


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
